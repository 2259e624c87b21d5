"""Hostile checkpoints: DCP directories, whose metadata are a pickle, and seals."""

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata

from titan_motif.components.dcp_files import DcpFolder
from titan_motif.components.dcp_metadata import METADATA
from titan_motif.components.dcp_reader import CheckedPlanner, CheckedReader
from titan_motif.components.seal import (
    SEAL,
    Part,
    content_problem,
    hash_file,
    seal_folder,
    seal_problem,
    write_seal,
)
from titan_motif.components.sealing_writer import seal_dcp
from titan_motif.drill.hostile_case import CANARY, Case, Place

_DATA = "__0_0.distcp"


def _read_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    step = DcpFolder(folder)
    return {name: step.read(name) for name in step.tensors}


def _read_states(folder: Path) -> dict[str, Any]:
    """Load what is no tensor, as a run that is continued does."""
    found: dict[str, Any] = {"state": 0}
    reader, planner = CheckedReader(folder), CheckedPlanner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            dcp.load(found, storage_reader=reader, planner=planner, no_dist=True)
        except CheckpointException as error:
            inner = next(iter(error.failures.values()))[0]
            raise ValueError(str(inner).partition("\n")[0]) from None
    return found


def _check_seal(folder: Path) -> None:
    problem = seal_problem(folder) or content_problem(folder)
    if problem:
        raise ValueError(problem)


def _saved(place: Place, **state: Any) -> Metadata:
    """Write a small checkpoint, and return its metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        writer = FileSystemWriter(place.inside)
        dcp.save({"weight": torch.ones(4), **state}, storage_writer=writer, no_dist=True)
        return FileSystemReader(place.inside).read_metadata()


def _sealed(place: Place) -> None:
    """Seal the folder's files, as whoever made them can."""
    files = {
        path.name: hash_file(path, [Part("weight", 0, 1)])
        for path in place.inside.iterdir()
        if path.is_file()
    }
    write_seal(place.inside, files)


def _with_metadata(place: Place, content: bytes) -> None:
    _saved(place)
    place.write(METADATA, content)
    _sealed(place)


def _changed(place: Place, change: Callable[[Place, Metadata], None]) -> None:
    metadata = _saved(place)
    change(place, metadata)
    place.write(METADATA, pickle.dumps(metadata))
    _sealed(place)


def _where(metadata: Metadata) -> Any:
    return next(iter(metadata.storage_data.values()))


def _elsewhere(place: Place, metadata: Metadata, path: str) -> None:
    content = (place.inside / _DATA).read_bytes()
    place.secret("secret.distcp", content + CANARY.encode())
    _where(metadata).relative_path = path.replace("OUTSIDE", str(place.outside))


def _linked_data(place: Place, metadata: Metadata) -> None:
    content = (place.inside / _DATA).read_bytes()
    (place.inside / _DATA).unlink()
    place.link_out(_DATA, content)


def _set_where(place: Place, metadata: Metadata, **fields: int) -> None:
    for name, value in fields.items():
        setattr(_where(metadata), name, value)


def _huge(place: Place, metadata: Metadata) -> None:
    entry = metadata.state_dict_metadata["weight"]
    entry.size = torch.Size([1 << 40])
    entry.chunks[0].sizes = torch.Size([1 << 40])


def _with_a_hole(place: Place, metadata: Metadata) -> None:
    """Name one half of a tensor twice: as many elements, and half of its memory is never filled."""
    entry = metadata.state_dict_metadata["weight"]
    entry.chunks = [ChunkStorageMetadata(torch.Size([0]), torch.Size([2]))] * 2


def _payload_in_plan(place: Place, metadata: Metadata) -> None:
    metadata.planner_data = {"weight": json.loads}  # a function where names are
    metadata.storage_meta = None


def _item(place: Place, metadata: Metadata, content: bytes) -> None:
    """Put another item in a tensor's place."""
    (place.inside / _DATA).write_bytes(content)
    _set_where(place, metadata, offset=0, length=len(content))


def _archived(content: bytes) -> bytes:
    """Return a pickle as torch saves one."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def _bomb() -> bytes:
    """Return a tensor's archive whose 16 bytes of values are 600 MB."""
    small, large = io.BytesIO(), io.BytesIO()
    torch.save(torch.ones(4), small)
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(large, "w", 8) as archive:
        for name in source.namelist():
            with archive.open(name, "w") as file:
                is_data = "/data/" in name
                for _ in range(6 if is_data else 1):
                    file.write(bytes(100_000_000) if is_data else source.read(name))
    return large.getvalue()


class _State:
    """A state whose bytes are a pickle that runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


def _hostile_state(place: Place) -> None:
    _saved(place, state=_State(place.command))
    _sealed(place)


def _doubling() -> bytes:
    """Return a pickle of a tuple of two of a tuple of two ..., 2^80 in all."""
    steps = (b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(80))
    return b"\x80\x02()q\x00" + b"".join(steps) + b"t."


def _linked_metadata(place: Place) -> None:
    _saved(place)
    content = (place.inside / METADATA).read_bytes()
    (place.inside / METADATA).unlink()
    place.link_out(METADATA, content)
    _sealed(place)


# ---- seals


def _record(**changes: Any) -> dict[str, Any]:
    return {"bytes": len(CANARY), "sha256": "0" * 64, "parts": []} | changes


def _with_seal(place: Place, files: Any) -> None:
    place.secret("secret.safetensors")
    write_seal(place.inside, files)


def _linked_in_seal(place: Place) -> None:
    place.link_out("a.safetensors")
    write_seal(place.inside, {"a.safetensors": hash_file(place.outside / "a.safetensors")})


def _unsealed_command(place: Place) -> None:
    _saved(place)
    place.write(METADATA, place.pickled())


def _unsealed_terabyte(place: Place) -> None:
    _saved(place)
    place.sparse(METADATA, 1 << 40)


def _unsealed_link(place: Place) -> None:
    place.write("model.safetensors", (2).to_bytes(8, "little") + b"{}")
    place.link_out("notes.txt")


_CHECKPOINTS: dict[str, Callable[[Place], Any]] = {
    "metadata that run a command": lambda p: _with_metadata(p, p.pickled()),
    "metadata whose parts leave a hole": partial(_changed, change=_with_a_hole),
    "metadata that name a function": partial(_changed, change=_payload_in_plan),
    "metadata that are a link out": _linked_metadata,
    "metadata with a memo of 2^31": lambda p: _with_metadata(p, b"\x80\x02Nr\xff\xff\xff\x7f."),
    "metadata that double 80 times": lambda p: _with_metadata(p, _doubling()),
    "metadata nested 100,000 deep": lambda p: _with_metadata(
        p, b"\x80\x02)" + b"\x85" * 100_000 + b"."
    ),
    "a file that goes up": partial(
        _changed, change=partial(_elsewhere, path="../outside/secret.distcp")
    ),
    "a file that is a link out": partial(_changed, change=_linked_data),
    "2^40 bytes": partial(_changed, change=partial(_set_where, length=1 << 40)),
    "2^40 elements": partial(_changed, change=_huge),
    "a tensor that runs a command": partial(
        _changed, change=lambda p, m: _item(p, m, _archived(p.pickled()))
    ),
    "600 MB packed into one": partial(_changed, change=lambda p, m: _item(p, m, _bomb())),
}


_SEALS: dict[str, Callable[[Place], Any]] = {
    "that goes up": lambda p: _with_seal(p, {"../outside/secret.safetensors": _record()}),
    "of a link out": _linked_in_seal,
    "nested 200,000 deep": lambda p: p.write(SEAL, "[" * 200_000),
}

_QUICK = (
    *("metadata that run a command", "a file that goes up", "a tensor that runs a command"),
    *("2^40 elements", "that goes up"),
)

CASES = (
    *(
        Case(f"a checkpoint: {name}", build, _read_checkpoint, is_quick=name in _QUICK)
        for name, build in _CHECKPOINTS.items()
    ),
    Case("a checkpoint: a state that runs a command", _hostile_state, _read_states, is_quick=True),
    Case("a checkpoint to seal that is a link out", _unsealed_link, seal_folder),
    Case("a checkpoint to seal that runs a command", _unsealed_command, seal_dcp),
    Case("a checkpoint to seal with metadata of a terabyte", _unsealed_terabyte, seal_dcp),
    *(
        Case(f"a seal {name}", build, _check_seal, is_quick=name in _QUICK)
        for name, build in _SEALS.items()
    ),
)
