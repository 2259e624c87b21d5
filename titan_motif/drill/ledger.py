"""What became of every case that was ever run: a file of lines, to which commands append."""

import errno
import json
import os
from pathlib import Path
from typing import NamedTuple

from titan_motif.components.foreign_files import parse_json


class Entry(NamedTuple):
    """A case that was run."""

    fault: str
    case: int
    is_held: bool
    told: str
    seconds: float
    commit: str
    """Of the source; with a + if there were changes beside it."""
    torch: str
    cores: int


class Ledger:
    """The entries of a file; several commands may append to it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """Return all entries in the order in which they came.

        Raises: ValueError, one line, for a file that is no ledger
        """
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text().splitlines():
            try:
                entry = parse_json(line)
            except ValueError:  # of a command that was killed
                continue
            try:
                found.append(Entry(**entry))
            except TypeError:
                raise ValueError(f"{self.path}: is no ledger of the drill") from None
        return found

    def add(self, entry: Entry) -> None:
        """Append an entry, whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write, so that commands do not mix theirs; a line that was cut off is ended first.
        line = b"\n" * self._is_cut_off() + json.dumps(entry._asdict()).encode() + b"\n"
        with self.path.open("ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _is_cut_off(self) -> bool:
        if not self.path.exists() or not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


def last_of_each(entries: list[Entry]) -> dict[tuple[str, int], Entry]:
    """Return the last entry of each case: one that was not held may have been mended."""
    return {(entry.fault, entry.case): entry for entry in entries}
