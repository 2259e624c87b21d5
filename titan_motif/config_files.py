"""The files of a job: their tables, in which line a key stands, and a line for each that is bad."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli

from titan_motif.config_types import fits, in_a_line, told
from titan_motif.toml_lines import key_lines, statements

_MOST_BYTES = 2**20
"""Of a file: the largest of ours has 4 KB."""


class ConfigError(ValueError):
    """A mistake of the user's in a configuration; its text is made one line."""

    def __init__(self, text: str) -> None:
        super().__init__(in_a_line(text))


def read_files(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the tables of a file and of those it is based on, the furthest one first.

    Raises: ConfigError for a file that cannot be read, is no TOML, or is based on itself
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    while True:
        table = _read_toml(path)
        found.insert(0, (path, table))
        if "base" not in table:
            return found
        base, place = table.pop("base"), places(path)("base")
        if not fits(base, str) or not base.strip():
            raise ConfigError(f"{place}: base is {told(base)}; the name of a TOML file is needed")
        path = path.parent / base
        problem = _problem(path)
        if problem is not None:
            raise ConfigError(f"{place}: base is {base!r}; {path}: {problem}")
        if any(path.resolve() == file.resolve() for file, _ in found):
            raise ConfigError(f"{place}: base is {base!r}; that is based on this file")


def places(file: Path) -> Callable[[str], str]:
    """Return what tells in which line of a file a key stands, or the table that it would be in."""
    lines = key_lines(_read_text(file))

    def place(key: str) -> str:
        while key and key not in lines:
            key = key.rpartition(".")[0]
        return f"{file}:{lines[key]}" if key else str(file)

    return place


def _read_toml(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at ")
        last = text.rstrip().count("\n") + 1
        number = int(m[1]) if (m := re.match(r"line (\d+)", where)) else last
        found = text.split("\n")[number - 1].strip(" \t")[:80]  # no line of TOML ends at U+2028
        raise ConfigError(f"{path}:{number}: not valid TOML: {what}; found {found!r}") from None
    except (ValueError, RecursionError) as error:
        number = _line_beyond_limits(text)
        place = path if number is None else f"{path}:{number}"
        what = str(error).partition(";")[0]  # behind it, how a programmer raises Python's limit
        raise ConfigError(f"{place}: cannot be read: {what}") from None


def _line_beyond_limits(text: str) -> int | None:
    """Return where the first statement begins that meets a limit of Python's or the reader's own.

    None where each is read by itself. Such a limit comes without a line, and what stands before
    the statement is valid TOML.
    """
    for number, statement in statements(text):
        try:
            tomli.loads(statement)
        except tomli.TOMLDecodeError:
            return None
        except (ValueError, RecursionError):
            return number
    return None


def _read_text(path: Path) -> str:
    problem = _problem(path)
    if problem is not None:
        raise ConfigError(f"{path}: {problem}")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: has more than {_MOST_BYTES:,} bytes; a job's file is needed")
    if content.startswith(b"\xef\xbb\xbf"):
        raise ConfigError(f"{path}:1: begins with a byte-order mark; UTF-8 without one is needed")
    try:
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wrong = f"byte 0x{content[error.start]:02x}"
        raise ConfigError(f"{path}:{line}: {wrong} is not UTF-8, which is needed") from None


def _problem(path: Path) -> str | None:
    """Return why a path names no file; None if it does."""
    try:
        if not path.exists():
            return f"no such file{_nearest(path)}"
    except OSError as error:  # such as a name that is too long
        return f"cannot be read: {error.strerror}"
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        return f"is {kind}; a TOML file is needed"
    return None


def _nearest(path: Path) -> str:
    near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.toml")])
    return f"; did you mean {path.with_stem(near[0])}?" if near else ""
