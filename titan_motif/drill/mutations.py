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
from titan_motif.drill.runs import run_to_end
from titan_motif.drill.servant import Servant
from titan_motif.drill.small_job import shared_folder, small_job
from titan_motif.drill.step_loader import Loaded, StepLoader

STEPS = (9, 12, 15)
"""Whole steps that a case begins with."""
_READ_BY_LOADERS = (".distcp", ".safetensors")
_SECONDS = 60
"""What a case may take."""


def _copy(step: Path, name: str) -> Path:
    """Give a step a file of its own, which was a link to the saved one, and return it."""
    path = step / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def _any_file(step: Path, draw: random.Random) -> Path:
    return _copy(step, draw.choice(sorted(path.name for path in step.iterdir())))


def _flip(step: Path, draw: random.Random) -> str:
    path = _any_file(step, draw)
    content = bytearray(path.read_bytes())
    places = [draw.randrange(len(content)) for _ in range(draw.choice([1, 1, 1, 2, 8]))]
    for place in places:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"{len(places)} bits of {path.name} flipped"


def _truncate(step: Path, draw: random.Random) -> str:
    path = _any_file(step, draw)
    os.truncate(path, draw.choice([0, draw.randrange(path.stat().st_size)]))
    return f"{path.name} cut off"


def _extend(step: Path, draw: random.Random) -> str:
    path = _any_file(step, draw)
    with path.open("ab") as file:
        file.write(draw.choice([b"\n", b"\0", draw.randbytes(draw.randrange(1, 5000))]))
    return f"bytes added to {path.name}"


def _zero_a_page(step: Path, draw: random.Random) -> str:
    path = _any_file(step, draw)
    content = bytearray(path.read_bytes())
    begin = draw.randrange(0, len(content), 4096)
    content[begin : begin + 4096] = bytes(len(content[begin : begin + 4096]))
    path.write_bytes(content)
    return f"a page of {path.name} zeroed"


def _fill(step: Path, draw: random.Random) -> str:
    path = _any_file(step, draw)
    path.write_bytes(draw.randbytes(path.stat().st_size))
    return f"{path.name} holds noise"


def _remove(step: Path, draw: random.Random) -> str:
    path = _any_file(step, draw)
    path.unlink()
    return f"{path.name} removed"


def _swap_ranks(step: Path, draw: random.Random) -> str:
    one, other = step / "__0_0.distcp", step / "__1_0.distcp"
    one.rename(step / "aside")
    other.rename(one)
    (step / "aside").rename(other)
    return "the files of two ranks swapped"


def _swap_steps(step: Path, draw: random.Random) -> str:
    older = step.with_name("step-12" if step.name == "step-15" else "step-9")
    name = draw.choice(sorted(path.name for path in step.iterdir()))
    (step / name).rename(step / "aside")
    (older / name).rename(step / name)
    (step / "aside").rename(older / name)
    return f"{name} swapped with {older.name}"


def _take_from_another_step(step: Path, draw: random.Random) -> str:
    name = draw.choice([SEAL, ".metadata", "__0_0.distcp"])
    (step / name).unlink()
    shutil.copy(step.with_name("step-9") / name, step / name)
    return f"{name} is that of step-9"


def _folder_for_a_file(step: Path, draw: random.Random) -> str:
    path = _any_file(step, draw)
    path.unlink()
    path.mkdir()
    return f"{path.name} is a folder"


def _pipe_for_a_file(step: Path, draw: random.Random) -> str:
    path = step / draw.choice(sorted(path.name for path in step.iterdir() if path.name != SEAL))
    path.unlink()
    os.mkfifo(path)
    return f"{path.name} is a pipe"


def _link_for_a_file(step: Path, draw: random.Random) -> str:
    path = step / draw.choice([SEAL, ".metadata", "__0_0.distcp"])
    same = path.rename(path.with_suffix(".moved"))
    target = draw.choice([same, path, Path("nowhere"), step.with_name("step-9") / path.name])
    path.symlink_to(target)
    return f"{path.name} is a link to {target.parent.name}/{target.name}"


def _link_for_the_step(step: Path, draw: random.Random) -> str:
    step.rename(step.parent / "elsewhere")
    step.symlink_to(step.parent / "elsewhere")
    return "the folder is a link to itself elsewhere"


def _rename_step(step: Path, draw: random.Random) -> str:
    other = draw.choice(["step-14", "step-20", "step-015", "step-15.bak", "old-step-15"])
    step.rename(step.with_name(other))
    return f"the folder is called {other}"


def _repeat_step(step: Path, draw: random.Random) -> str:
    other = draw.choice(["step-14", "step-18", "step-18.bak"])
    shutil.copytree(step, step.with_name(other))
    return f"a copy of it is called {other}"


def _repeat_part_of_step(step: Path, draw: random.Random) -> str:
    other = shutil.copytree(step, step.with_name("step-18"))
    names = sorted(path.name for path in other.iterdir())
    for name in draw.sample(names, draw.randrange(1, len(names))):
        (other / name).unlink()
    return f"a copy of a part of it ({len(list(other.iterdir()))} files) is called step-18"


def _link_a_newer_step(step: Path, draw: random.Random) -> str:
    step.with_name("step-18").symlink_to(step.with_name("step-9"))
    return "step-18 is a link to step-9"


def _add_empty_step(step: Path, draw: random.Random) -> str:
    step.with_name("step-18").mkdir()
    return "step-18 is empty"


def _file_for_a_step(step: Path, draw: random.Random) -> str:
    step.with_name("step-18").write_bytes(draw.randbytes(100))
    return "step-18 is a file"


def _leave_temporary_files(step: Path, draw: random.Random) -> str:
    names = (f"{SEAL}.new", ".metadata.tmp", "__2_0.distcp.tmp", ".nfs0001")
    for name in draw.sample(names, 2):
        (step / name).write_bytes(draw.randbytes(300))
    return "half-written temporary files beside it"


def _add_what_a_loader_reads(step: Path, draw: random.Random) -> str:
    name = draw.choice(["__2_0.distcp", "model.safetensors", "model.safetensors.index.json"])
    (step / name).write_bytes(draw.randbytes(300))
    return f"{name} beside it"


def _remove_the_step(step: Path, draw: random.Random) -> str:
    shutil.rmtree(step)
    return "the folder removed"


KINDS: tuple[tuple[Callable[[Path, random.Random], str], int], ...] = (
    (_flip, 8),
    (_truncate, 3),
    (_extend, 2),
    (_zero_a_page, 2),
    (_fill, 1),
    (_remove, 3),
    (_swap_ranks, 1),
    (_swap_steps, 2),
    (_take_from_another_step, 2),
    (_folder_for_a_file, 1),
    (_pipe_for_a_file, 1),
    (_link_for_a_file, 2),
    (_link_for_the_step, 1),
    (_rename_step, 2),
    (_repeat_step, 2),
    (_repeat_part_of_step, 2),
    (_link_a_newer_step, 1),
    (_add_empty_step, 1),
    (_file_for_a_step, 1),
    (_leave_temporary_files, 1),
    (_add_what_a_loader_reads, 1),
    (_remove_the_step, 1),
)
"""Mutations of a step, the newest or the one before it, and how often each is drawn."""


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
        simple = draw.choice([_flip, _truncate, _remove, _zero_a_page])
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
