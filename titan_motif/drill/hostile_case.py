"""What a hostile file is: how it is made, what reads it, and what it must not get."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CANARY = "canary-5f1d0c7e93a84b26d"
"""Stands in the files outside, and in no other: whoever has it has read one of them. 24 bytes."""
PLANTED = "planted_module"
"""A module that lies beside the files; imported, it writes the marker."""


class Place(NamedTuple):
    """Where a case lies."""

    inside: Path
    """The folder that is read."""
    outside: Path
    """The folder beside it, which nobody has named."""
    marker: Path
    """A file that is there once a payload has run."""

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the folder that is read."""
        return _write(self.inside / name, content)

    def secret(self, name: str, content: str | bytes = CANARY) -> Path:
        """Write a file outside."""
        return _write(self.outside / name, content)

    def link_out(self, name: str, content: str | bytes = CANARY) -> None:
        """Make a file of the folder a link to one outside."""
        self.secret(name, content)
        (self.inside / name).parent.mkdir(parents=True, exist_ok=True)
        (self.inside / name).symlink_to(self.outside / name)

    def sparse(self, name: str, num_bytes: int) -> None:
        """Write a file that claims many bytes and takes none."""
        with self.write(name, b"").open("r+b") as file:
            file.truncate(num_bytes)

    @property
    def command(self) -> str:
        """A shell's command that shows that it has run."""
        return f"echo ran > {self.marker}"

    def pickled(self) -> bytes:
        """Return a pickle that runs the command where it is read."""
        return pickle.dumps(_Payload(self.command))

    def plant(self) -> None:
        """Lay a module beside the files that runs the command where it is imported."""
        self.write(f"{PLANTED}.py", f"import os\nos.system({self.command!r})\n")


class _Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


class Case(NamedTuple):
    """A hostile file."""

    name: str
    build: Callable[[Place], Any]
    read: Callable[[Path], Any]
    """Reads the folder as a command does, and returns what it has found."""
    is_refused: bool = True
    """Whether it has to be refused; otherwise it may be read, as long as it gets nothing."""
    is_quick: bool = False


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
