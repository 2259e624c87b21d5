"""The tests of the Triton kernels, run by Triton's interpreter on CPU.

Triton decides when a kernel is made whether it is interpreted, so this takes processes of its own:
two at once, since each uses one core.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ATTENTION = ["tests/unit/kernels/test_attention.py"]  # about half of the time
OTHERS = ["tests/unit/kernels", "tests/distributed/test_operators.py"]
OTHERS += ["tests/unit/components/test_newton_schulz.py", f"--ignore={ATTENTION[0]}"]


@pytest.mark.timeout(900)  # a minute on a machine that has them to itself
def test_kernels_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    started = [
        subprocess.Popen(
            [*command, *tests],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for tests in (ATTENTION, OTHERS)
    ]
    try:
        told = [process.communicate(timeout=800)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    of_attention, of_others = (int(re.search(r"(\d+) passed", text).group(1)) for text in told)
    assert of_attention > 50
    assert of_others > 100
