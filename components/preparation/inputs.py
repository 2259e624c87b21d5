"""The files that a user names as inputs, and the format of each.

Files, folders (a Hugging Face dataset is a folder) and patterns.
"""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from titan_motif.components.foreign_files import inside
from titan_motif.components.preparation import tables

SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".ipc", ".feather"),
    "text": (".txt", ".md", ".rst"),
}
FORMATS = ("auto", *SUFFIXES, "huggingface")


class Input(NamedTuple):
    """A file, or the folder of a Hugging Face dataset."""

    path: str
    format: str
    num_bytes: int
    modified_ns: int


def find_inputs(given: Sequence[str], format_: str = "auto") -> list[Input]:
    """Return the files of what a user names: files, folders, patterns; each file once.

    Of a folder the files of the format, by their suffixes, sorted by path; hidden ones are left
    out. Links out of it are refused: what lies there may be a stranger's, a name is the user's. If
    the format is named to be text, all of its files, whatever their suffix.
    Raises: ValueError naming what is missing or empty, or whose format is not known
    """
    if format_ not in FORMATS:
        raise ValueError(f"unknown format {format_!r}; one of {', '.join(FORMATS)} is needed")
    if not given:
        raise ValueError("no inputs; files, folders or patterns are needed")
    found: dict[str, Input] = {}
    for name in given:
        for one in _expand(name, format_):
            found.setdefault(one.path, one)
    return list(found.values())


def is_unchanged(one: Input) -> bool:
    """Return whether a file is as it was when it was found, by its size and time."""
    try:
        return _input(Path(one.path), one.format) == one
    except (OSError, ValueError):
        return False


def _expand(name: str, format_: str) -> Iterator[Input]:
    path = Path(name)
    if path.is_dir():
        if format_ in ("auto", "huggingface") and tables.is_dataset(path):
            yield _input(path, "huggingface")
            return
        for file in _files_below(path, format_):
            yield _input(file, format_)
    elif path.exists():
        yield _input(path, format_, is_named=True)
    elif glob.has_magic(name):
        matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        files = [match for match in matches if match.is_file()]
        if not files:
            raise ValueError(f"{name}: matches no file")
        for file in files:
            yield _input(file, format_)
    else:
        raise ValueError(f"{name}: no such file or folder")


def _files_below(folder: Path, format_: str) -> list[Path]:
    """Return a folder's files of a format; ValueError if there are none, or if it is in doubt."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(x.startswith(".") for x in file.relative_to(folder).parts)
    ]
    try:
        for file in files:
            inside(folder, file.relative_to(folder))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}, or name it by itself") from None
    if format_ == "auto":
        files = [file for file in files if _format_of(file) is not None]
        counts = Counter(map(_format_of, files))
        if len(counts) > 1:
            told = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
            raise ValueError(f"{folder}: files of several formats ({told}); name one of them")
    elif format_ != "text":
        files = [file for file in files if _format_of(file) == format_]
    if not files:
        known = "a known format" if format_ == "auto" else format_
        raise ValueError(f"{folder}: a folder without files of {known}")
    return files


def _format_of(file: Path) -> str | None:
    name = file.name.lower()
    return next((known for known, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)


def _input(path: Path, format_: str, is_named: bool = False) -> Input:
    known = _format_of(path) if format_ == "auto" else format_
    if known is None:
        raise ValueError(
            f"{path}: its suffix tells no format; name one of {', '.join(FORMATS[1:])}"
        )
    files = [path] if path.is_file() else sorted(x for x in path.rglob("*") if x.is_file())
    stats = [file.stat() for file in files]
    size = sum(stat.st_size for stat in stats)
    # Among many files of text, an empty one is an empty document, which is counted.
    if size == 0 and (is_named or known != "text"):
        raise ValueError(f"{path}: empty; a file of {known} is needed")
    modified_ns = max((stat.st_mtime_ns for stat in stats), default=0)
    return Input(str(path), known, size, modified_ns)
