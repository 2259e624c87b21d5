"""Where the Triton kernels run: a GPU, or the interpreter (TRITON_INTERPRET=1) on CPU.

CI runs this folder in the interpreter from tests/integration/test_interpreted_kernels.py.
"""

import sys
from pathlib import Path

import pytest
import torch

from titan_motif.kernels.launch import IS_INTERPRETED

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def device() -> str:
    if torch.cuda.is_available() and not IS_INTERPRETED:
        return "cuda"
    if not IS_INTERPRETED:
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")
    return "cpu"
