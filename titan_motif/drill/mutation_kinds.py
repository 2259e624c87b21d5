"""What is done to a saved step: as disks do it, and people, and copies that were cut off."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from titan_motif.components.seal import SEAL


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
    path = _any_file(step, draw)
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
SIMPLE = (_flip, _truncate, _remove, _zero_a_page)
"""What a second step is mutated by."""
