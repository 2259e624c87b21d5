"""The seal of a folder: what every file and every tensor in it was, written after all of them.

A save that was cut off has no seal, and a file that has changed since does not fit it; neither is
loaded. FOLDER/seal.json holds the size and SHA-256 of each file, the SHA-256 of each tensor in it,
and a hash of itself. It tells damage, not malice: who can write the files can seal them anew. So a
seal is read as a stranger's file, too: the names in it that lead out of the folder are refused.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from titan_motif.components.file_hashes import own_sha256, write_record
from titan_motif.components.foreign_files import MAX_RECORD_BYTES, inside, read_json
from titan_motif.components.safetensors_files import INDEX, tensor_extents

SEAL = "seal.json"
UNFINISHED = ".unfinished"
"""Lies in a folder from the beginning of its writing until it is sealed."""
FORMAT = 1
_PIECE = 1 << 22
_READ_BY_NAME = (INDEX, ".metadata", "config.json")


class Part(NamedTuple):
    """Where a tensor, or a rank's part of one, lies in its file."""

    name: str
    begin: int
    end: int


def hash_file(path: Path, parts: Sequence[Part] = ()) -> dict[str, Any]:
    """Read a file once and return its record: size, hash, and the hash of each part.

    Parts do not overlap.
    """
    whole, num_bytes, sealed = hashlib.sha256(), 0, []
    with path.open("rb") as file:

        def read_to(end: int | None, *digests: Any) -> None:
            nonlocal num_bytes
            while end is None or num_bytes < end:
                piece = file.read(_PIECE if end is None else min(_PIECE, end - num_bytes))
                if not piece:
                    return
                num_bytes += len(piece)
                for digest in digests:
                    digest.update(piece)

        for part in sorted(parts, key=lambda part: part.begin):
            own = hashlib.sha256()
            read_to(part.begin, whole)
            read_to(part.end, whole, own)
            sealed.append([*part, own.hexdigest()])
        read_to(None, whole)
    return {"bytes": num_bytes, "sha256": whole.hexdigest(), "parts": sealed}


def begin_writing(folder: Path) -> None:
    """Make a folder, if it is not there, that counts as unfinished until it is sealed."""
    if not folder.exists():  # at no moment is it empty: a folder that was emptied held something
        new = folder.with_name(".new")
        new.mkdir(parents=True, exist_ok=True)
        (new / UNFINISHED).touch()
        new.rename(folder)
    (folder / UNFINISHED).touch()


def write_seal(folder: Path, files: Mapping[str, dict[str, Any]]) -> None:
    """Seal a folder whose files are all there; `files` are their names and records."""
    sealed = {name: files[name] for name in sorted(files) if name != UNFINISHED}
    write_record(folder / SEAL, {"format": FORMAT, "files": sealed})
    (folder / UNFINISHED).unlink(missing_ok=True)


def seal_folder(folder: Path) -> None:
    """Hash every file below a folder, of safetensors each tensor too, and seal it.

    Raises: ValueError, one line, if a file is a link out of the folder
    """
    break_seal(folder)
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    seen = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    try:
        paths = {name.as_posix(): inside(folder, name) for name in seen}
    except ValueError as error:
        raise ValueError(f"{folder}: cannot be sealed: {error}") from None
    write_seal(folder, {name: hash_file(path, _parts(path)) for name, path in paths.items()})


def break_seal(folder: Path) -> None:
    """Remove a folder's seal, so that it counts no longer."""
    (folder / SEAL).unlink(missing_ok=True)


def is_sealed(folder: Path) -> bool:
    """Return whether a folder has a seal, whatever it is worth."""
    return (folder / SEAL).is_file()


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder was surely never sealed: its writing began and was cut off."""
    return not is_sealed(folder) and (folder / UNFINISHED).exists()


def seal_problem(folder: Path) -> str | None:
    """Return why a folder's seal cannot hold, by the names and sizes of files alone; else None.

    A seal that leads out of its folder, by a name or a link, is none.
    """
    try:
        files = _read(folder)
    except ValueError as error:
        return str(error)
    for name, record in files.items():
        path = folder / name
        if not path.is_file():
            return f"lacks its file {name}"
        size, needed = path.stat().st_size, record["bytes"]
        if size != needed:
            return f"has {size} bytes in {name}, of {needed}"
    return _unlisted_problem(folder, files)


def _unlisted_problem(folder: Path, files: Mapping[str, Any]) -> str | None:
    """Return which file that a loader might read was added after the seal."""
    added = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in files
        and (path.suffix in (".safetensors", ".distcp") or path.name in _READ_BY_NAME)
    )
    return f"has {added[0]}, which its seal does not list" if added else None


def sealed_names(folder: Path) -> set[str]:
    """Return the names of the tensors and other objects in a sealed folder; ValueError if none."""
    return {part[0] for record in _read(folder).values() for part in record["parts"]}


def content_problem(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """Read a sealed folder's files and return what has changed, by its first tensor; else None.

    Args:
        share, shares: read one of so many shares of the files alone, as each rank does
    """
    try:
        files = _read(folder)
    except ValueError as error:
        return str(error)
    added = _unlisted_problem(folder, files)
    if added:
        return added
    for name, record in list(files.items())[share::shares]:
        parts = [Part(*part[:3]) for part in record["parts"]]
        try:
            found = hash_file(folder / name, parts)
        except OSError as error:
            return f"cannot be read in {name} ({error.strerror})"
        if found["sha256"] != record["sha256"]:
            wrong = [
                then[0]
                for then, now in zip(record["parts"], found["parts"], strict=True)
                if then != now
            ]
            where = f"at {wrong[0]}" if wrong else "outside of its tensors"
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            return f"has changed in {name} since it was saved, {where}{more}"
    return None


def _parts(path: Path) -> list[Part]:
    """Return where the tensors of a safetensors file lie; nothing of any other file."""
    if path.suffix != ".safetensors":
        return []
    return [Part(name, *extent) for name, extent in tensor_extents(path).items()]


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a seal; ValueError, a predicate, if it is missing or damaged."""
    try:
        seal = read_json(inside(folder, SEAL), MAX_RECORD_BYTES)
    except FileNotFoundError:
        raise ValueError(f"has no {SEAL}: its save did not finish") from None
    except (OSError, ValueError) as error:
        told = error if type(error) is ValueError else type(error).__name__
        raise ValueError(f"has a {SEAL} that cannot be read ({told})") from None
    if not isinstance(seal, dict) or seal.get("format") != FORMAT:
        raise ValueError(f"has a {SEAL} of another format")
    if seal.get("sha256") != own_sha256(seal):
        raise ValueError(f"has a {SEAL} that was edited or damaged: its own hash is another")
    _check_records(folder, seal.get("files"))
    return seal["files"]


def _check_records(folder: Path, files: Any) -> None:
    """Raise ValueError, a predicate, unless a seal's records are what this module writes.

    The hash does not tell that: whoever makes up a seal makes up its hash.
    """
    if not isinstance(files, dict):
        raise ValueError(f"has a {SEAL} that lists no files")
    for name, record in files.items():
        try:
            inside(folder, name)
        except ValueError as error:
            raise ValueError(f"has a {SEAL} that lists what is not its own: {error}") from None
        is_whole = (
            isinstance(record, dict)
            and type(record.get("bytes")) is int
            and isinstance(record.get("sha256"), str)
            and isinstance(record.get("parts"), list)
            and all(map(_is_part, record["parts"]))
        )
        if not is_whole:
            raise ValueError(f"has a {SEAL} whose record of {name!r} is none")


def _is_part(part: Any) -> bool:
    kinds = [type(value) for value in part] if isinstance(part, list) else []
    return kinds == [str, int, int, str] and 0 <= part[1] <= part[2]
