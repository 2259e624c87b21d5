"""The saved steps of a run as they lie on disk: which count, which can be begun from."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils._pytree import tree_leaves

from titan_motif.components.dcp_metadata import METADATA
from titan_motif.components.safetensors_files import INDEX
from titan_motif.components.seal import is_sealed, is_unfinished, seal_problem, sealed_names

_STEP = re.compile(r"step-(0|[1-9][0-9]*)")
"""As they are written: step-015 and step-15 would be two of one number."""


@dataclass(frozen=True)
class SavedStep:
    """What a step's directory holds."""

    step: int
    path: str
    problem: str | None
    """Why it cannot be used; None if it is complete."""
    is_model_only: bool = False
    is_unfinished: bool = False
    """Whether its save was cut off, so that it never held anything whole."""

    def __str__(self) -> str:
        return f"step-{self.step} {self.problem}"


def beginning_problem(path: str | Path) -> str | None:
    """Return why a directory cannot be begun from, or None; its bytes are not read.

    A DCP directory has to be sealed. Safetensors of the world have no seal; if they have one, it
    counts.
    """
    path = Path(path)
    if not path.is_dir():
        return "is no directory"
    if is_safetensors(path) and not is_sealed(path):
        return None
    return _step_problem(path)


def saved_steps(folder: str | Path) -> list[SavedStep]:
    """Return the steps in a checkpoint folder, newest first; other names are no steps."""
    folder = Path(folder)
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _STEP.fullmatch(path.name)
        if match and path.is_dir():
            problem = _step_problem(path)
            model_only = problem is None and not any(
                name.startswith("train_state") for name in sealed_names(path)
            )
            step, was_cut_off = int(match.group(1)), is_unfinished(path)
            found.append(SavedStep(step, str(path), problem, model_only, was_cut_off))
    return sorted(found, key=lambda saved: saved.step, reverse=True)


def step_to_begin_from(path: str | Path) -> str:
    """Return a directory to begin from: of a run's checkpoint folder its newest usable step.

    What is no such folder, or has no usable step, is returned as it is: `beginning_problem` tells.
    """
    path = Path(path)
    if (path / METADATA).is_file() or is_safetensors(path):
        return str(path)
    usable = (saved.path for saved in saved_steps(path) if saved.problem is None)
    return next(usable, str(path))


def is_safetensors(path: Path) -> bool:
    """Return whether a directory holds safetensors, or their index."""
    return any(path.glob("model*.safetensors")) or (path / INDEX).is_file()


def _step_problem(path: Path) -> str | None:
    problem = seal_problem(path)
    if problem and not is_sealed(path) and not is_unfinished(path) and (path / METADATA).is_file():
        # Of another program, or older than seals.
        return f"{problem}; `titan-motif seal {path}` seals one that is known to be whole"
    return problem


def space_problem(folder: Path, state_dict: dict[str, Any]) -> str | None:
    """Return what the disk of a folder lacks to hold a state, by its tensors' global sizes."""
    states = [v.state_dict() if isinstance(v, Stateful) else v for v in state_dict.values()]
    tensors = [leaf for leaf in tree_leaves(states) if isinstance(leaf, Tensor)]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if needed <= free:
        return None
    return f"{needed / 1e9:,.2f} GB are needed, and {parent} has {free / 1e9:,.2f} GB left"
