"""Files that may come from a stranger, or be damaged: looked at before they are opened.

A file is read if it is a plain one (no pipe, no device), of a size that has been thought of, and
within the folder that the user named: names in an index that lead out, and links out, are refused
and not followed. What a ValueError says here is a reason; whoever reads the file puts its name in
front.
"""

import errno
import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16_000_000
"""Of a file of JSON, and of a line. In memory it can be 20 times as large; the index of a model
with 90,000 tensors has 9 MB."""
MAX_NESTING = 100
"""Objects and lists within one another: whatever walks over them later has a limit of its own."""
MAX_RECORD_BYTES = 1_000_000_000
"""Of the records that a run writes of itself: the seal of a step of 400 ranks has 100 MB."""


def inside(folder: Path, name: str | Path) -> Path:
    """Return the path of a file in a folder, by a name that somebody else has given it.

    Raises: ValueError, a reason, if the name or a link leads out of the folder; nothing is opened
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in str(name):
        raise ValueError(f"{str(name)!r} names no file in {folder}")
    path = folder / name
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if not real.is_relative_to(root):
        raise ValueError(
            f"{str(name)!r} is a link out of {folder}, which is not followed; copy what it leads "
            "to (cp -rL; hf download --local-dir for a model of the hub)"
        )
    return path


def check_file(path: Path, max_bytes: int) -> None:
    """Raise ValueError, a reason, unless a path is a plain file of a size that is read.

    Raises: OSError, FileNotFoundError among them, if it cannot be looked at
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no plain file")
    if found.st_size > max_bytes:
        raise ValueError(f"{found.st_size:,} bytes; at most {max_bytes:,} are read")


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Return a file's text, of UTF-8.

    Raises: ValueError, a reason, for what `check_file` refuses and for what is no UTF-8; OSError
    """
    check_file(path, max_bytes)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:  # of /proc, or it has grown since
        raise ValueError(f"more than {max_bytes:,} bytes; no more are read")
    return content.decode()


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES, *, is_record: bool = False) -> Any:
    """Return what a file of JSON holds.

    Args:
        is_record: a run's own figures, which may be NaN or infinite
    Raises: ValueError, a reason, for what `read_text` and `parse_json` refuse; OSError
    """
    return parse_json(read_text(path, max_bytes), is_record=is_record)


def parse_json(text: str | bytes, *, is_record: bool = False) -> Any:
    """Return what a text of JSON holds.

    Raises: ValueError, a reason: no JSON, nested too deep, a name twice in an object; NaN and the
            infinities, unless it is a record
    """
    try:
        if is_record:
            found = json.loads(text)
        else:
            found = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_NESTING} deep") from None
    if is_too_deep(found):
        raise ValueError(f"nested more than {MAX_NESTING} deep")
    return found


def is_too_deep(value: object) -> bool:
    """Return whether objects and lists stand within one another more than MAX_NESTING deep."""
    level = [value] if isinstance(value, dict | list | tuple) else []
    for _ in range(MAX_NESTING):
        inside = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [x for inner in inside for x in inner if isinstance(x, dict | list | tuple)]
        if not level:
            return False
    return True


def printable(text: str, kept: str = "") -> str:
    """Return a text as a terminal shows it, in one line: what would steer it is escaped.

    Args:
        kept: characters that are not, such as the newlines of a whole document
    """
    return "".join(
        character
        if character.isprintable() or character in kept
        else character.encode("unicode_escape", errors="backslashreplace").decode()
        for character in text
    )


def is_panic(error: BaseException) -> bool:
    """Return whether a library in Rust has given up; its exception is no Exception."""
    return type(error).__name__ == "PanicException"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {twice[:80]!r} stands twice in an object")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")
