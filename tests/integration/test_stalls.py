"""A rank that stands still ends the run: within a minute, with a sentence that names it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from whole_runs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STALL_SECONDS = 6
SCRIPT = """
import os, sys, time
from pathlib import Path
import titan_motif.train
from titan_motif.train import MotifTrainer

folder, fault = Path(sys.argv[1]), sys.argv[2]
rank = os.environ["RANK"]
(folder / f"pid-{rank}").write_text(str(os.getpid()))
train_step = MotifTrainer.train_step

def faulty(self, batches):
    if self.step == 4:
        (folder / f"there-{rank}").touch()
        if rank == "1" and fault == "read":
            def hanging():
                time.sleep(600)
                yield
            batches = self._count_without_filling(hanging())
        if rank == "1" and fault == "held":
            import ctypes
            ctypes.PyDLL(None).sleep(600)
        if fault == "stopped":
            time.sleep(1)
    return train_step(self, batches)

MotifTrainer.train_step = faulty
sys.exit(titan_motif.train.main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("read", "rank 1 made no progress for 6 s, since "),
        ("held", "nothing is heard of rank 1: stopped, or its machine is gone"),
        ("stopped", "nothing is heard of rank 1: stopped, or its machine is gone"),
    ],
)
def test_a_rank_that_stands_still_is_named(arguments, tmp_path: Path, fault: str, told: str):
    """It reads and gets nothing; its interpreter is held in C; its process is stopped."""
    script = tmp_path / "faulty.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "titan_motif.launch", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command += [str(script), str(tmp_path), fault, *arguments, "--validation.enable=false"]
    command += ["--training.local_batch_size=3"]  # one micro-batch a step: nobody is ahead by one
    command += [f"--watchdog.stall_seconds={STALL_SECONDS}", "--watchdog.slow_seconds=30"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 150
    while not all((tmp_path / f"there-{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if fault == "stopped":
        os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGSTOP)
    begin = time.monotonic()
    output, _ = process.communicate(timeout=STALL_SECONDS + 100)
    seconds = time.monotonic() - begin
    assert process.returncode == 1
    assert seconds < STALL_SECONDS + 60, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert told in line
    if fault == "read":
        assert "step 4: reading data; the others wait for it; stacks of its threads: " in line
        assert "hanging" in (tmp_path / "run" / "stalls" / "rank_1.txt").read_text()
