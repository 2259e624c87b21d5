"""What became of every case that was ever run: a file of lines, to which commands append."""

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
        lines = self.path.read_text().split("\n")
        try:
            # What follows the last newline is of a command that was killed.
            return [Entry(**parse_json(line)) for line in lines[:-1]]
        except (TypeError, ValueError):
            raise ValueError(f"{self.path}: is no ledger of the drill") from None

    def add(self, entry: Entry) -> None:
        """Append an entry, whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(entry._asdict(), ensure_ascii=False) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def last_of_each(entries: list[Entry]) -> dict[tuple[str, int], Entry]:
    """Return the last entry of each case: one that was not held may have been mended."""
    return {(entry.fault, entry.case): entry for entry in entries}
