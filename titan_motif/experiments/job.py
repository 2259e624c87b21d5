"""A training job of a cell: torchrun with a process a GPU, and what the run has left."""

import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

NUM_TOLD = 20
"""Last lines of a job that failed, of which one says why."""


class Devices(NamedTuple):
    """What jobs run on."""

    type: str
    """cuda or cpu"""
    count: int
    """Processes of a job."""

    @property
    def environment(self) -> dict[str, str]:
        """What a job's processes are told."""
        told = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.type == "cuda":
            return told | {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
        threads = str(max(len(os.sched_getaffinity(0)) // self.count, 1))
        return told | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}


def choose_devices(name: str) -> Devices:
    """Return all GPUs for 'cuda', one process for 'cpu', the former for 'auto' if there are any.

    Raises: ValueError, one line, for another name, or for GPUs where there are none
    """
    num_gpus = torch.cuda.device_count()
    if name not in ("auto", "cuda", "cpu"):
        raise ValueError(f"--device is {name!r}; one of auto, cuda, cpu is needed")
    if name == "cuda" and not num_gpus:
        raise ValueError("--device is 'cuda'; this machine shows no GPU")
    return Devices("cpu", 1) if name == "cpu" or not num_gpus else Devices("cuda", num_gpus)


def train(settings: Sequence[str], folder: Path, devices: Devices) -> float:
    """Train a job whose run lies in a folder, which is emptied, and return the seconds it took.

    Args:
        settings: of the job, --section.field=value; --job.config_file is one of them
    Raises: RuntimeError, one line, if it does not come to its end
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    launcher = ["--nproc_per_node", str(devices.count), "--nnodes", "1"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    launcher += ["--log-dir", str(folder / "ranks")]
    if devices.count > 1:
        launcher += ["--local-ranks-filter", "0"]
    command = [sys.executable, "-m", "titan_motif.launch", *launcher, "-m", "titan_motif.train"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, *settings, f"--job.dump_folder={folder}"],
        env=os.environ | devices.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=NUM_TOLD)
    for line in process.stdout:
        print(line, end="", flush=True)
        last.append(line.strip())
    if process.wait() != 0:
        raise RuntimeError(f"training ended with exit code {process.returncode}: {_reason(last)}")
    return time.perf_counter() - begin


def _reason(lines: Sequence[str]) -> str:
    """Return the last line that names an error, the last one if none does."""
    told = [line for line in lines if line]
    errors = [line for line in told if "rror" in line]
    return (errors or told or ["no output"])[-1]
