"""Files that are never seen half written, and folders that one process writes at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"
"""The empty file that `alone_in` leaves."""


def replace_text(path: Path, text: str, *, is_synced: bool = False) -> None:
    """Write a file so that whoever reads it sees the old text or the new one.

    Args:
        is_synced: the disk has the text before it takes the place of the old one: for what has to
                   be whole after the machine has failed too
    """
    replacement = path.with_name(f"{path.name}.new")
    with replacement.open("w") as file:
        file.write(text)
        if is_synced:
            file.flush()
            os.fsync(file.fileno())
    os.replace(replacement, path)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a folder from other processes that ask likewise: they wait. Leaves LOCK."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)  # over NFS, to be written to
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
