"""A cell's losses over tokens, and where they come down to a loss."""

import statistics
from collections.abc import Sequence
from itertools import pairwise

from titan_motif.study.runner import Row

Line = tuple[list[float], list[float]]
"""What a curve is over, and its values."""


def validation_line(row: Row, name: str) -> Line:
    """Return a validation curve: millions of tokens, and losses."""
    curve = row["validation_curve"]
    tokens_of_step = row["tokens_seen"] / row["step"] / 1e6
    return [step * tokens_of_step for step in curve["step"]], curve[name]


def reached(line: Line, loss: float) -> float | None:
    """Return where a curve first comes down to a loss, between its points linearly; None: never."""
    xs, losses = line
    if losses[0] <= loss:
        return xs[0]
    for (x, y), (next_x, next_y) in pairwise(zip(xs, losses, strict=True)):
        if next_y <= loss:
            return x + (next_x - x) * (y - loss) / (y - next_y)
    return None


def told_mean(values: Sequence[float | None], digits: int = 3) -> str:
    """Return mean (least to most) of where a loss was reached."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, least, most = (
        f"{value:.{digits}f}" for value in (statistics.fmean(known), min(known), max(known))
    )
    return mean if len(known) == 1 else f"{mean} ({least} to {most})"
