"""What came of a drilled run, and what differs first between two of them."""

import json
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from titan_motif.components.foreign_files import MAX_RECORD_BYTES, read_json
from titan_motif.components.history import read_history
from titan_motif.components.saved_steps import saved_steps
from titan_motif.components.seal import SEAL

STARTS = "starts"
"""Folder, in the run's, of each start's log and record of what the models were given."""
FIGURES = ("loss", "loss_metrics/global_max_loss", "grad_norm", "lr", "data/tokens_seen")
"""Of a step, as metrics.jsonl has them."""


class RunRecord(NamedTuple):
    """What came of a run, over all of its starts: of each step what holds at the end."""

    figures: dict[int, dict[str, float]]
    """Of each step (from 1) those of FIGURES."""
    sequences: dict[int, list[str]]
    """Of each step a hash of every sequence that models were given, in the global order."""
    state: dict[str, str]
    """SHA-256 of each tensor and object of the newest whole checkpoint, by file and name."""


def read_run(folder: Path) -> RunRecord:
    """Return what came of a run."""
    whole = [saved.path for saved in saved_steps(folder / "checkpoint") if not saved.problem]
    lines = [line for line in read_history(folder) if "validation_loss" not in line]
    return RunRecord(
        {line["step"]: {name: line[name] for name in FIGURES} for line in lines},
        _read_sequences(folder / STARTS),
        state_hashes(whole[0]) if whole else {},
    )


def state_hashes(step: str | Path) -> dict[str, str]:
    """Return the hash of each tensor and object in a sealed step's folder, by file and name."""
    files = read_json(Path(step) / SEAL, MAX_RECORD_BYTES)["files"]
    return {
        f"{name}: {part}": sha256
        for name, record in files.items()
        for part, _, _, sha256 in record["parts"]
    }


def first_difference(
    run: RunRecord, reference: RunRecord, steps: range | None = None
) -> str | None:
    """Return what differs first between two runs, every bit counting; None if nothing does.

    Args:
        steps: compare these alone, and the state only if they are None
    """
    for step in steps or sorted(reference.figures.keys() | run.figures.keys()):
        here, there = run.figures.get(step), reference.figures.get(step)
        if here is None or there is None:
            return f"step {step} is missing in {'this run' if here is None else 'the reference'}"
        for name in FIGURES:
            if here[name] != there[name]:
                return f"{name} of step {step} is {here[name]!r}, of the reference {there[name]!r}"
        pairs = zip_longest(run.sequences.get(step, []), reference.sequences.get(step, []))
        for place, (found, expected) in enumerate(pairs):
            if found != expected:
                return f"sequence {place} of step {step} is {found}, of the reference {expected}"
    if steps is None and run.state != reference.state:
        names = run.state.keys() | reference.state.keys()
        wrong = sorted(n for n in names if run.state.get(n) != reference.state.get(n))
        return f"{len(wrong)} parts of the last checkpoint differ, {wrong[0]} the first of them"
    return None


def _read_sequences(starts: Path) -> dict[int, list[str]]:
    """Return what the models were given; a step that was done again counts as in its last start."""
    found: dict[int, list[str]] = {}
    for log in sorted(starts.glob("*.log")):
        by_step: dict[int, list[list[list[str]]]] = {}
        ranks = sorted(starts.glob(f"{log.stem}-*.jsonl"))
        for rank, path in enumerate(ranks):
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # of a rank that was killed
                    continue
                parts = by_step.setdefault(entry["step"], [[] for _ in ranks])
                parts[rank].append(entry["sequences"])
        for step, of_ranks in by_step.items():
            micro_batches = zip_longest(*of_ranks, fillvalue=[])
            found[step] = [hash_ for each in micro_batches for part in each for hash_ in part]
    return found
