"""Files from strangers: each is read as the product reads it, and gets nothing.

Of 100 hostile files no code is run, nothing is opened outside of the folder that was named, and
what lies there is neither returned nor told. A file is refused in one line, or read as the harmless
data that it holds.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from titan_motif.components.foreign_files import is_panic, printable
from titan_motif.drill import (
    hostile_checkpoints,
    hostile_data,
    hostile_records,
    hostile_texts,
    hostile_weights,
)
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.hostile_case import CANARY, Case, Place
from titan_motif.drill.hostile_watch import watched

_ALL = (
    *hostile_weights.CASES,
    *hostile_checkpoints.CASES,
    *hostile_texts.CASES,
    *hostile_data.CASES,
    *hostile_records.CASES,
)
CASES: tuple[Case, ...] = tuple(sorted(_ALL, key=lambda case: not case.is_quick))
"""Those of a quick drill first."""
_TOLD = (ValueError, OSError, RuntimeError)
"""What the commands tell in a line."""


def run(number: int, folder: Path) -> Outcome:
    """Make a hostile file, read it, and see what it got."""
    return judge(CASES[number], folder)


def judge(case: Case, folder: Path) -> Outcome:
    """Make a case's files in a folder, read them, and say whether they got nothing."""
    place = Place(folder / "inside", folder / "outside", folder / "ran")
    place.inside.mkdir()
    place.outside.mkdir()
    case.build(place)
    found, problem = None, None
    with watched(place) as watch:
        try:
            found = case.read(place.inside)
        except Exception as error:
            problem = error
        except BaseException as error:
            if not is_panic(error):
                raise
            problem = error
    said = "read" if problem is None else str(problem)
    wrong = [*watch.seen]
    if CANARY.encode() in _bytes(found) or CANARY in said:
        wrong.append("what lies outside was told")
    if problem is not None and not isinstance(problem, _TOLD):
        wrong.append(f"refused with {type(problem).__name__}")
    if isinstance(problem, TimeoutError) or "\n" in said:
        wrong.append("not refused in one line")
    if problem is None and case.is_refused:
        wrong.append("not refused")
    told = printable(said.replace(str(folder), "...")[:300])
    return Outcome(not wrong, f"{case.name}: {'; '.join([*wrong, told])}")


def _bytes(value: Any) -> bytes:
    """Return all text and numbers within a value, as bytes."""
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().view(torch.uint8).numpy() if value.numel() else b""
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.nbytes < 1 << 20 else value[: 1 << 16].tobytes()
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b"".join(_bytes(x) for pair in value.items() for x in pair)
    if isinstance(value, list | tuple | set):
        return b"".join(map(_bytes, value))
    return str(value).encode(errors="replace")


HOSTILE = Fault(
    name="hostile",
    title="a hostile file: weights, a checkpoint, a tokenizer, a template, data or a run's records",
    bar="no code run, nothing opened outside of the folder, refused in one line or read without "
    "harm, within 10 s and 500 MB",
    count=len(CASES),
    num_quick=sum(case.is_quick for case in CASES),
    run=run,
)
