"""What a run wrote of its steps and of its starts: two files of lines, each a step's JSON."""

import json
import os
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from titan_motif.components.foreign_files import MAX_RECORD_BYTES, check_file, parse_json

HISTORY_FILE = "metrics.jsonl"

STARTS_FILE = "starts.jsonl"


def read_history(dump_folder: str | Path) -> list[dict[str, float]]:
    """Return what a run wrote of its steps, in order; the later of two entries of a step holds.

    A run that is started again after its last step validates that step once more.
    """
    return in_order(read_lines(Path(dump_folder) / HISTORY_FILE)[0])


def in_order(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of a history by step, each once."""
    merged: dict[tuple[int, bool], dict[str, float]] = {}
    for entry in entries:
        merged[entry["step"], "validation_loss" in entry] = entry
    return [merged[key] for key in sorted(merged)]


def forget_history_after(step: int, path: Path) -> int:
    """Drop the entries beyond `step`: another run's, or of steps that will be done again.

    The half line of a killed run goes too: the next entry would be written on to it. Returns how
    many steps beyond `step` the history went.
    """
    if not path.exists():
        return 0
    entries, _ = read_lines(path)
    kept = [entry for entry in entries if entry["step"] <= step]
    replacement = path.with_suffix(".new")  # whoever reads sees the old file or the new one
    replacement.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    os.replace(replacement, path)
    return max([0, *(entry["step"] - step for entry in entries)])


def average_tokens_per_second(history: list[dict[str, float]]) -> float | None:
    """Return the tokens/s of all logged steps, whichever starts of the run did them.

    An entry's rate is that of the steps since the one before it, all of as many tokens.
    """
    logged = [entry for entry in history if "tokens_per_second" in entry]
    if not logged:
        return None
    num_steps = [here - before for before, here in pairwise([0, *(e["step"] for e in logged)])]
    return statistics.harmonic_mean([e["tokens_per_second"] for e in logged], num_steps)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the entries of a file of lines, and how many lines are none (a killed run's last).

    Raises: ValueError naming the file if it is no plain one, or too large
    """
    entries, num_broken = [], 0
    for line in _lines(path):
        try:
            entry = parse_json(line, is_record=True)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            entries.append(entry)
        else:
            num_broken += 1
    return entries, num_broken


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        check_file(path, MAX_RECORD_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return path.read_text(errors="replace").splitlines()


def append_entry(path: Path, entry: dict[str, Any]) -> None:
    """Add a line to a file of lines; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
