"""Saved steps that were changed: a run loads the newest whole one, or says why there is none.

What is to be loaded is not asked of the seal: a step counts as whole if every file that it was
saved with holds the same bytes (the seal: the same record), if nothing stands beside them that a
loader reads, and if its folder has its name.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from titan_motif.components.foreign_files import MAX_RECORD_BYTES, read_json
from titan_motif.components.seal import SEAL
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.mutation_kinds import KINDS, SIMPLE
from titan_motif.drill.runs import run_to_end
from titan_motif.drill.servant import Servant
from titan_motif.drill.small_job import shared_folder, small_job
from titan_motif.drill.step_loader import Loaded, StepLoader

STEPS = (9, 12, 15)
"""Whole steps that a case begins with."""
_READ_BY_LOADERS = (".distcp", ".safetensors")
_SECONDS = 60
"""What a case may take."""


class SavedRun(NamedTuple):
    """A run's checkpoints as they were saved, and what each of them loads as."""

    folder: Path
    states: dict[int, str]


def save_run(shared: Path) -> Path:
    """Return the checkpoint folder of a small run on two ranks, made if it is not there."""
    folder, job = shared / "saved", small_job(shared)
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run_to_end([f"--job.config_file={job}", "--model.args.n_layers=1"], folder, 2)
        (folder / "done").touch()
    return folder / "checkpoint"


def load_saved(loader: StepLoader, folder: Path) -> SavedRun:
    """Return what untouched checkpoints load as, one step after another."""
    loaded = {step: loader.load(folder, step) for step in STEPS}
    assert all(one.step == step for step, one in loaded.items()), loaded
    states = {step: one.state for step, one in loaded.items()}
    assert len(set(states.values())) == len(STEPS)
    return SavedRun(folder, states)


def mutate(number: int, saved: SavedRun, folder: Path) -> str:
    """Make a folder of saved steps of which one or two are mutated; tell in a line how."""
    shutil.copytree(saved.folder, folder, copy_function=os.link)
    draw = random.Random(number)
    kinds, weights = zip(*KINDS, strict=True)
    kind = kinds[number % len(kinds)] if number < len(kinds) else draw.choices(kinds, weights)[0]
    told = f"step-15: {kind(folder / 'step-15', draw)}"
    if draw.random() < 0.25 and (folder / "step-12").is_dir():
        simple = draw.choice(SIMPLE)
        if all((folder / "step-12" / name).is_file() for name in _files(saved.folder / "step-12")):
            told += f"; step-12: {simple(folder / 'step-12', draw)}"
    return told


def run_case(number: int, folder: Path, loader: StepLoader, saved: SavedRun) -> Outcome:
    """Mutate, load, and see what became of it."""
    checkpoint = folder / "checkpoint"
    done = mutate(number, saved, checkpoint)
    whole = [step for step in STEPS if _is_whole(checkpoint, saved.folder, step)]
    loaded = loader.load(checkpoint)
    missed = _missed(loaded, max(whole), saved, checkpoint)
    return Outcome(missed is None, f"{done}: {missed or f'loaded step {loaded.step}'}")


def _missed(loaded: Loaded, step: int, saved: SavedRun, checkpoint: Path) -> str | None:
    """Return what is not as it has to be after a load; None if all is."""
    if loaded.step != step:
        return f"step {loaded.step} was loaded, and {step} is the newest whole one: {loaded.told}"
    if loaded.state != saved.states[step]:
        return f"what was loaded is not step {step}"
    if any("\n" in line or len(line) > 400 for line in loaded.told):
        return f"more than a line was told: {loaded.told}"
    for number in range(step + 1, max(STEPS) + 10):
        lines = [line for line in loaded.told if line.startswith(f"checkpoint: step-{number} ")]
        if len(lines) != (checkpoint / f"step-{number}").is_dir():
            return f"{len(lines)} lines tell of step-{number}: {loaded.told}"
    return None


def _files(step: Path) -> list[str]:
    return sorted(path.name for path in step.iterdir())


def _is_whole(checkpoint: Path, saved: Path, step: int) -> bool:
    """Return whether a step is as it was saved; temporary files beside it do not matter."""
    here, there = checkpoint / f"step-{step}", saved / f"step-{step}"
    names = _files(there)
    if not here.is_dir() or not all((here / name).is_file() for name in names):
        return False
    added = [name for name in _files(here) if name not in names]
    if any(name.endswith((*_READ_BY_LOADERS, ".index.json")) for name in added):
        return False
    return _record(here / SEAL) == _record(there / SEAL) and all(
        (here / name).read_bytes() == (there / name).read_bytes() for name in names if name != SEAL
    )


def _record(seal: Path) -> object:
    try:
        return read_json(seal, MAX_RECORD_BYTES)
    except ValueError:
        return None


def _answer(shared: str, work: str) -> Callable[[int, str], Outcome]:
    """Return what answers cases, in the process of a servant."""
    loader = StepLoader(small_job(Path(shared)), Path(work), ["--model.args.n_layers=1"])
    saved = load_saved(loader, save_run(Path(shared)))
    return lambda number, folder: run_case(number, Path(folder), loader, saved)


_servants: dict[Path, Servant] = {}


def run(number: int, folder: Path) -> Outcome:
    """Mutate saved steps, let another process load them as a run does, and tell what it loaded."""
    shared = shared_folder(folder)
    save_run(shared)
    if shared not in _servants:
        _servants[shared] = Servant(_answer, (str(shared), str(shared / "loading")))
    try:
        return _servants[shared].ask(number, str(folder), seconds=_SECONDS)
    except RuntimeError as error:
        _servants.pop(shared).close()
        return Outcome(False, str(error))


MUTATIONS = Fault(
    name="mutations",
    title="1000 mutations of saved steps: flipped bits, cut, swapped, missing and added files, "
    "folders and links in their place",
    bar="the newest step that is whole is loaded, bit for bit, and a line tells of each newer one",
    count=1000,
    num_quick=40,
    run=run,
)
