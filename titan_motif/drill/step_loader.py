"""A run's own choice of a saved step and its loading, again and again in one process."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten
from torchtitan.components.checkpoint import DATALOADER
from torchtitan.tools.logging import logger

from titan_motif.components.checkpoint import CheckpointError
from titan_motif.config_loading import load_config
from titan_motif.train import build_trainer

_WRONG = -7
"""What everything is set to before a step is loaded, so that nothing is taken for loaded."""


class Loaded(NamedTuple):
    """What a load came to."""

    step: int | None
    """The step that the run would go on from; None if it would not start."""
    state: str
    """A hash of weights, optimizer, schedule, position in the data, and counts, after it."""
    told: list[str]
    """Lines on steps that were passed over, or the one on which the run would end."""


class StepLoader:
    """A trainer on one rank that has done no step, whose checkpoint folder may be another one.

    The process needs RANK, LOCAL_RANK and WORLD_SIZE, and a process group of one rank.

    Args:
        job:      its TOML file
        work:     a folder to work in
        settings: that differ from the file's
    """

    def __init__(self, job: Path, work: Path, settings: Sequence[str] = ()) -> None:
        own = [f"--job.config_file={job}", f"--job.dump_folder={work}", "--watchdog.enable=false"]
        config = load_config([*own, *settings], 1)
        self.trainer = build_trainer(config)
        self.manager = self.trainer.checkpointer

    def load(self, folder: Path, step: int = -1) -> Loaded:
        """Load a step of a checkpoint folder, the newest whole one (-1) as a run does."""
        self._spoil()
        self.manager.folder, self.manager.resumed_from = str(folder), None
        with _told() as told:
            try:
                self.manager.load(step)
            except CheckpointError as error:
                return Loaded(None, self._state(), [*told, f"error: {error}"])
        return Loaded(self.manager.resumed_from, self._state(), told)

    def close(self) -> None:
        """End the trainer's threads."""
        self.trainer.close()
        self.trainer.control.close()

    def _leaves(self) -> list[Any]:
        names = sorted(set(self.manager.states) - {DATALOADER})
        leaves, structure = tree_flatten([self.manager.states[n].state_dict() for n in names])
        return [*leaves, structure, self.trainer.dataloader.state_dict()]

    def _spoil(self) -> None:
        for leaf in self._leaves():
            if isinstance(leaf, Tensor):
                _local(leaf).fill_(_WRONG)
        self.trainer.lr_schedulers.tokens_seen = 0
        self.trainer.step, self.trainer.tokens_seen = _WRONG, _WRONG
        self.trainer.dataloader.take_back(0)

    def _state(self) -> str:
        digest = sha256()
        for leaf in self._leaves():
            if isinstance(leaf, Tensor):
                digest.update(_local(leaf).contiguous().numpy().tobytes())
            else:
                digest.update(repr(leaf).encode())
        return digest.hexdigest()


def _local(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def _told() -> Iterator[list[str]]:
    """Give the warnings on checkpoints that are logged meanwhile."""
    told: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING and "checkpoint" in record.getMessage():
                told.append(record.getMessage())

    keep = Keep()
    logger.addHandler(keep)
    try:
        yield told
    finally:
        logger.removeHandler(keep)
