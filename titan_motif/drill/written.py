"""What a piece of code writes on disk, as Python's audit events tell it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FOLDER_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_lists: list[list[Path]] = []
"""Of those who listen; an audit hook cannot be taken out again, so that there is one."""


@contextlib.contextmanager
def paths_written() -> Iterator[list[Path]]:
    """Collect every path that is written, made, moved or removed meanwhile.

    Python's own caches of compiled modules are left out: an import may write them.
    """
    if _hear not in _installed:
        sys.addaudithook(_hear)
        _installed.append(_hear)
    found: list[Path] = []
    _lists.append(found)
    try:
        yield found
    finally:
        _lists.remove(found)


_installed: list[Any] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _lists or event not in ("open", *_FOLDER_CHANGES):
        return
    path = arguments[0]
    if event == "open" and not (arguments[2] or 0) & _WRITING:
        return
    if not isinstance(path, str | bytes | os.PathLike):  # a descriptor that is open already
        return
    place = Path(os.fsdecode(path)).absolute()
    if "__pycache__" not in place.parts and place != Path(os.devnull):
        for found in _lists:
            found.append(place)
