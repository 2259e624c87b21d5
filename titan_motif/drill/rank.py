"""A rank of a drilled run: titan_motif.train as it is, with a record of what its model is given.

`torchrun -m titan_motif.drill.rank ARGUMENTS`, or `run_forked` in a process that is forked from one
that has imported this module: importing torch and torchtitan is most of a small run's time.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import torch
import torch.distributed.checkpoint.state_dict
import torchtitan.train
from torchtitan.components.loss import IGNORE_INDEX

from titan_motif.drill.rank_faults import faulty
from titan_motif.train import MotifTrainer, main

STRUCK = ".struck"
"""Of the file beside a rank's record that says that its fault has struck."""
VALIDATING = ".validating-"
"""Of the file beside a rank's record that says that validation after a step has begun."""
READ = "TITAN_MOTIF_DRILL_READ"
"""Environment variable: the beginning of the name of the file that a rank writes its record to."""
FAULT = "TITAN_MOTIF_DRILL_FAULT"
"""Environment variable: the words of a fault (titan_motif.drill.rank_faults); none is no fault."""


def run_rank(argv: Sequence[str]) -> int:
    """Run a job on this rank and return its exit code; what its model is given is recorded.

    torchtitan lets the first rank sleep for 2 s at the end: that is left out.
    """
    path = Path(f"{os.environ[READ]}{os.environ['RANK']}.jsonl")
    clock = SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda seconds: None)
    original, validate = MotifTrainer.forward_backward_step, MotifTrainer._before_validation_batch
    with path.open("a", buffering=1) as file:

        def record(trainer: MotifTrainer, **given: Any) -> torch.Tensor:
            sequences = _hashes([*given["input_dict"].values()], given["labels"])
            file.write(json.dumps({"step": trainer.step, "sequences": sequences}) + "\n")
            return original(trainer, **given)

        def note(trainer: MotifTrainer) -> None:
            path.with_name(f"{path.stem}{VALIDATING}{trainer.step}").touch()
            validate(trainer)

        with (
            faulty(os.environ.get(FAULT, "").split(), path.with_suffix(STRUCK)),
            mock.patch.object(MotifTrainer, "forward_backward_step", record),
            mock.patch.object(MotifTrainer, "_before_validation_batch", note),
            mock.patch.object(torchtitan.train, "time", clock),
        ):
            return main(argv)


def _hashes(inputs: list[torch.Tensor], labels: torch.Tensor) -> list[str]:
    """Return a hash of each sequence of a micro-batch: all that the model is told; no filling."""
    return [
        sha256(b"".join(tensor.numpy().tobytes() for tensor in row)).hexdigest()[:16]
        for row in zip(*inputs, labels, strict=True)
        if not (row[-1] == IGNORE_INDEX).all()
    ]


def run_forked(argv: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    """Run a job on this rank, in a process of a group of its own, which ends with the exit code."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # of workers: this process's is inherited
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.exit(run_rank(argv))


if __name__ == "__main__":
    sys.exit(run_rank(sys.argv[1:]))
