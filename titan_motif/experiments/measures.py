"""What is compared between arms: means and spreads over seeds, and when a difference counts."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from titan_motif.study.runner import Row

RowsByArm = Mapping[str, Sequence[Row]]
"""Finished rows of every arm, in the order of seeds; each with its `seed`."""
MIN_SEEDS = 3
"""Of each arm; with fewer, a spread says next to nothing."""
SPREADS = 2.0
"""A difference within so many spreads is none."""
RULE = f"""\
Rule: the spread of a measure is the root mean square of the two arms' standard deviations over
seeds, and for an accuracy no less than the standard error that its number of questions leaves. A
difference of the arms' means counts if it is more than {SPREADS:g} spreads; within them it is
"none". With fewer than {MIN_SEEDS} seeds of either arm the answer is "not yet". Of arms that differ
in nothing, with three seeds of each, up to 7% of measures would count by chance. Arms share what
a seed decides, such as the order of the data: differences that are alike in each seed say something
even where the rule, which looks at means alone, says "none"."""


class Measure(NamedTuple):
    """A number that each cell has."""

    name: str
    value_of: Callable[[Row], float]
    is_better_lower: bool
    num_asked: int | None = None
    """Questions, where the value is the share of them with right answers."""
    digits: int = 4
    """After the point, of a value that is no share."""

    def told(self, value: float) -> str:
        """Return a value as tables have it: a share in percent."""
        return f"{value:,.{self.digits}f}" if self.num_asked is None else f"{100 * value:.1f}"

    def standard_error(self, share: float) -> float:
        """Return what the choice of questions leaves open of a share; 0 for other values."""
        if self.num_asked is None:
            return 0.0
        return (share * (1 - share) / self.num_asked) ** 0.5


def group_losses(groups: Sequence[str]) -> tuple[Measure, ...]:
    """Return the measures of the validation loss of each group."""
    return tuple(
        Measure(f"{group} loss", partial(_group_loss, group=group), is_better_lower=True)
        for group in groups
    )


def _group_loss(row: Row, group: str) -> float:
    return row["validation_losses"][group]


class Summary(NamedTuple):
    """A measure over an arm's finished seeds."""

    mean: float
    deviation: float | None
    """Standard deviation (of a sample) over seeds; None of one seed."""
    num_seeds: int


def summarize(measure: Measure, rows: Sequence[Row]) -> Summary | None:
    """Return the summary over an arm's rows, None if there are none."""
    if not rows:
        return None
    values = [measure.value_of(row) for row in rows]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), deviation, len(values))


def rows_by_arm(rows: Mapping[str, Row], arms: Sequence[str]) -> dict[str, list[Row]]:
    """Return each arm's finished rows, in the order of seeds."""
    found: dict[str, list[tuple[int, Row]]] = {arm: [] for arm in arms}
    for name, row in rows.items():
        arm, _, seed = name.partition(":")
        if arm in found and "error" not in row:
            found[arm].append((int(seed), row))
    return {
        arm: [row | {"seed": seed} for seed, row in sorted(pairs, key=lambda pair: pair[0])]
        for arm, pairs in found.items()
    }


class Comparison(NamedTuple):
    """Two arms in one measure."""

    difference: float | None
    """The second arm's mean less the first's; None while one of them has no cell."""
    spread: float | None
    """None with fewer than MIN_SEEDS seeds."""
    verdict: str
    """The better arm, "none" or "not yet"."""
    by_seed: tuple[float, ...] = ()
    """The difference in each seed that both arms have."""


def compare(measure: Measure, rows: RowsByArm, arms: tuple[str, str]) -> Comparison:
    """Return which of two arms is better in a measure, by RULE."""
    first, second = (summarize(measure, rows[arm]) for arm in arms)
    if first is None or second is None:
        return Comparison(None, None, "not yet")
    difference = second.mean - first.mean
    values = [{row["seed"]: measure.value_of(row) for row in rows[arm]} for arm in arms]
    by_seed = tuple(values[1][s] - x for s, x in values[0].items() if s in values[1])
    if min(first.num_seeds, second.num_seeds) < MIN_SEEDS:
        return Comparison(difference, None, "not yet", by_seed)
    assert first.deviation is not None
    assert second.deviation is not None
    spread = max(
        ((first.deviation**2 + second.deviation**2) / 2) ** 0.5,
        measure.standard_error(first.mean),
        measure.standard_error(second.mean),
    )
    if abs(difference) <= SPREADS * spread:
        return Comparison(difference, spread, "none", by_seed)
    is_second_better = (difference < 0) == measure.is_better_lower
    return Comparison(difference, spread, arms[1] if is_second_better else arms[0], by_seed)
