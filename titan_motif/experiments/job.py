"""A training job of a cell: what it is read from, and torchrun with a process a GPU."""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

from titan_motif.config import JobConfig
from titan_motif.config_files import read_files
from titan_motif.config_loading import load_config

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
            # Threads of several jobs that wait for each other, one a core, slow all of them down:
            # beside three others a job on H200s had 0.37 million tokens/s with, 0.62 without.
            return told | {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "OMP_NUM_THREADS": "1"}
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


class CellOptions(NamedTuple):
    """What `titan-motif experiment` is asked for; None is the experiment's own."""

    devices: Devices
    is_quick: bool = False
    tokens: int | None = None
    config: Path | None = None
    """The TOML file."""
    data: Path | None = None
    """Folder of the prepared data."""


class CellJob(NamedTuple):
    """What the jobs of all cells have in common."""

    config: Path
    """The TOML file."""
    settings: list[str]
    """--job.config_file, and what of the command line is in the file's place."""
    job: JobConfig
    data: Path

    @property
    def config_sha256(self) -> str:
        """Of the file and of those that it is based on."""
        text = b"".join(file.read_bytes() for file, _ in read_files(self.config))
        return hashlib.sha256(text).hexdigest()


def read_cell_job(name: str, options: CellOptions) -> CellJob:
    """Return what the jobs of an experiment's cells have in common.

    Raises: ValueError, one line, for what makes no job
    """
    config, tokens, data = options.config, options.tokens, options.data
    file = f"train_configs/experiment_{name}{'_quick' if options.is_quick else ''}.toml"
    config = Path(__file__).resolve().parents[2] / file if config is None else config
    settings = [f"--job.config_file={config}"]
    if tokens is not None:
        if tokens < 1:
            raise ValueError(f"--tokens is {tokens}; at least 1 is needed")
        settings.append(f"--curriculum.total_tokens={tokens}")
    job = load_config(settings, options.devices.count, runs_here=False)
    folder = (Path(job.training.dataset_path) if data is None else data).absolute()
    return CellJob(config, [*settings, f"--training.dataset_path={folder}"], job, folder)


def train(settings: Sequence[str], folder: Path, devices: Devices) -> float:
    """Train a job whose run lies in a folder, which is emptied, and return the seconds it took.

    Args:
        settings: of the job, --section.field=value; --job.config_file is one of them
    Raises: RuntimeError, one line, if it does not come to its end
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = launcher(devices.count, folder)
    if devices.count > 1:
        command += ["--local-ranks-filter", "0"]
    command += ["-m", "titan_motif.train", *settings, f"--job.dump_folder={folder}"]
    begin = time.perf_counter()
    run_and_show(command, devices.environment, "training")
    return time.perf_counter() - begin


def launcher(num_processes: int, folder: Path) -> list[str]:
    """Return the command that starts ranks on this machine, but for what they are to run.

    Args:
        folder: the run's; what each rank prints is kept in it
    """
    command = [sys.executable, "-m", "titan_motif.launch", "--nnodes", "1"]
    command += ["--nproc_per_node", str(num_processes)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return [*command, "--log-dir", str(folder / "ranks")]


def run_and_show(command: Sequence[str], environment: Mapping[str, str], what: str) -> None:
    """Run a command, its output on ours; RuntimeError, one line, if it fails.

    It ends with this process: a run that went on alone would be in the way of the next call.
    """
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=NUM_TOLD)
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(line.strip())
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        process.terminate()
        process.communicate()  # a full pipe would keep it
        raise
    finally:
        process.wait()
        signal.signal(signal.SIGTERM, before)
    if process.returncode != 0:
        raise RuntimeError(f"{what} ended with exit code {process.returncode}: {_reason(last)}")


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _reason(lines: Sequence[str]) -> str:
    """Return the last line that names an error, the last one if none does."""
    told = [line for line in lines if line]
    errors = [line for line in told if "rror" in line]
    return (errors or told or ["no output"])[-1]
