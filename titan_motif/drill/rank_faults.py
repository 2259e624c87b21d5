"""Faults of a rank, put into it from within: what `runs.start` is given as `fault`, as words.

spoil PLACE VALUE STEP RANK    a number that is NaN or infinite (titan_motif.drill.spoil)
read STEP RANK                 reading the step's data hangs
held STEP RANK                 the interpreter is held in a call of C
stopped STEP RANK              the process is stopped, as by a debugger (SIGSTOP)
worker STEP RANK               a worker of the data loader is killed
data STEP RANK                 the data end before the step's
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import torch.distributed as dist
from torchtitan.train import Trainer

from titan_motif.drill.spoil import Spoil, Watched, spoil_run
from titan_motif.train import MotifTrainer

_LONG = 3600


@contextlib.contextmanager
def faulty(words: Sequence[str], record: Path) -> Iterator[None]:
    """Let trainers that are built here have a fault.

    Args:
        record: the file that `spoil` writes a Watched to, as JSON; the others touch it when they
                strike
    """
    if not words:
        yield
        return
    kind, *values = words
    init, train_step = MotifTrainer.__init__, MotifTrainer.train_step
    if kind == "spoil":
        place, value, step, rank = values
        spoil = Spoil(place, float(value), int(step), int(rank))

        def building(trainer: MotifTrainer, *args: Any, **kwargs: Any) -> None:
            init(trainer, *args, **kwargs)

            def write(seen: Watched) -> None:
                record.write_text(json.dumps(seen._asdict()))

            spoil_run(trainer, spoil, write)

        with mock.patch.object(MotifTrainer, "__init__", building):
            yield
        return
    step, rank = map(int, values)

    def stepping(trainer: MotifTrainer, batches: Iterator[Any]) -> None:
        if trainer.step == step and dist.get_rank() == rank:
            record.touch()
            batches = STRIKES[kind](trainer, batches)
        train_step(trainer, batches)

    with mock.patch.object(MotifTrainer, "train_step", stepping):
        yield


def _hang(trainer: MotifTrainer, batches: Iterator[Any]) -> Iterator[Any]:
    def never() -> Iterator[Any]:
        time.sleep(_LONG)
        yield

    return trainer._count_without_filling(never())


def _hold(trainer: MotifTrainer, batches: Iterator[Any]) -> Iterator[Any]:
    ctypes.PyDLL(None).sleep(_LONG)  # without letting go of the interpreter
    return batches


def _stop(trainer: MotifTrainer, batches: Iterator[Any]) -> Iterator[Any]:
    os.kill(os.getpid(), signal.SIGSTOP)
    return batches


def _kill_worker(trainer: MotifTrainer, batches: Iterator[Any]) -> Iterator[Any]:
    for worker in multiprocessing.active_children()[:1]:
        os.kill(worker.pid or 0, signal.SIGKILL)
    return batches


def _end(trainer: MotifTrainer, batches: Iterator[Any]) -> Iterator[Any]:
    return trainer._count_without_filling(Trainer.batch_generator(trainer, ()))


STRIKES: dict[str, Callable[[MotifTrainer, Iterator[Any]], Iterator[Any]]] = {
    "read": _hang,
    "held": _hold,
    "stopped": _stop,
    "worker": _kill_worker,
    "data": _end,
}
"""What each does to a trainer and its batches, which it returns."""
