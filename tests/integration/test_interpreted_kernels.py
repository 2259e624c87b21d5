"""The tests of the Triton kernels, run by Triton's interpreter on CPU.

Triton decides when a kernel is made whether it is interpreted, so this takes a process of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)  # two minutes on a machine that has them to itself
def test_kernels_in_the_interpreter():
    tests = ["tests/unit/kernels", "tests/distributed/test_operators.py"]
    tests += ["tests/unit/components/test_newton_schulz.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert int(re.search(r"(\d+) passed", finished.stdout).group(1)) > 150
