"""The results of a study as they come in: one file, whole after every cell."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titan_motif.components.foreign_files import MAX_RECORD_BYTES, read_json
from titan_motif.components.whole_files import alone_in, replace_text
from titan_motif.study.runner import Row


@dataclass
class Results:
    """What is known of the cells of a study, and what they have in common."""

    path: Path
    settings: dict[str, Any]
    """Of two studies whose settings are equal, rows may stand in one table."""
    environment: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    """By the cell's name, in the order of the table."""
    hint: str = "--fresh starts anew, --output is another folder"
    """What to do where the file is of other settings."""

    def resume(self) -> None:
        """Take over the rows of the file, if there is one.

        Raises: ValueError, one line, if they are of other settings
        """
        if self.path.exists():
            self.rows = self._read()

    def add(self, name: str, row: Row) -> None:
        """Add a cell's row to the file, beside those that other processes have added."""
        with alone_in(self.path.parent):
            others = self._read() if self.path.exists() else {}
            self.rows = self.rows | others | {name: row}
            content = {
                "settings": self.settings,
                "environment": self.environment,
                "cells": self.rows,
            }
            replace_text(self.path, json.dumps(content, indent=1) + "\n")

    def _read(self) -> dict[str, Row]:
        """Return the rows of the file."""
        try:
            content = read_json(self.path, MAX_RECORD_BYTES, is_record=True)
            found, rows = content["settings"], content["cells"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path}: holds no results of a study") from None
        # As they come back from a file: lists for tuples.
        own = json.loads(json.dumps(self.settings))
        difference = _first_difference(own, found)
        if difference is not None:
            name, mine, other = difference
            raise ValueError(
                f"{self.path}: its results are of {name} {other!r}, these would be of {mine!r}; "
                f"{self.hint}"
            )
        return rows


def _first_difference(own: Any, found: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return where two values differ, in the innermost tables and lists, and both values there."""
    if isinstance(own, dict) and isinstance(found, dict):
        keys = dict.fromkeys([*own, *found])
        parts = [(f"{name}.{key}".lstrip("."), own.get(key), found.get(key)) for key in keys]
    elif isinstance(own, list) and isinstance(found, list) and len(own) == len(found):
        parts = [(name, mine, other) for mine, other in zip(own, found, strict=True)]
    else:
        return None if own == found else (name, own, found)
    differences = (_first_difference(mine, other, part) for part, mine, other in parts)
    return next((one for one in differences if one is not None), None)
