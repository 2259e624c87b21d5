"""Curves: their points from a history, fewer points for long ones, and their axes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from statistics import fmean
from typing import Any

from titan_motif.report.record import is_number

Point = tuple[int, float]
_value = itemgetter(1)

BUCKETS = 240
"""Parts of a long curve, each drawn by its least and largest value and its mean: about one part for
every two pixels of a chart."""

WIDTH, HEIGHT = 2000, 1000
"""Of a chart, in the units of its paths; the page stretches it."""


@dataclass(frozen=True)
class Series:
    """A curve."""

    name: str
    points: list[Point]
    """(step, value), steps rising, values finite."""
    color: str = "ink"
    """Class of the page's style sheet: ink, quiet, c0 to c7 (groups), d0 to d7 (depth)."""
    is_dashed: bool = False
    num_not_finite: int = 0


@dataclass(frozen=True)
class Chart:
    """Curves over the steps on one pair of axes."""

    title: str
    unit: str
    series: list[Series]
    note: str = ""
    bottom: float | None = None
    """Where the value's axis begins; None is where the curves need it."""
    can_be_log: bool = False
    """Whether the axis is logarithmic where values differ a hundredfold."""
    is_share: bool = False
    span: tuple[int, int] | None = None
    """First and last step of the axis; None is those of the curves."""
    marks: list[int] = field(default_factory=list)
    """Steps with a vertical line: where the run was taken up again."""


def series_of(history: Sequence[dict[str, Any]], key: str, name: str, **looks: Any) -> Series:
    """Return a figure's curve; what is no finite number is counted and left out."""
    found = [(e["step"], e[key]) for e in history if e.get(key) is not None]
    points = [(step, value) for step, value in found if is_number(value)]
    return Series(name, points, num_not_finite=len(found) - len(points), **looks)


def thin(points: list[Point], buckets: int = BUCKETS) -> list[Point]:
    """Return at most two points for each of equal parts of the steps: the least and the largest.

    First and last point stay too. So every peak of a long curve is still drawn.
    """
    if len(points) <= 2 * buckets:
        return points
    kept = {points[0], points[-1]}
    for inside in _parts(points, buckets):
        kept |= {min(inside, key=_value), max(inside, key=_value)}
    return sorted(kept)


def means(points: list[Point], buckets: int = BUCKETS) -> list[tuple[float, float]]:
    """Return the mean step and value of each part of a curve that `thin` makes shorter, else it."""
    if len(points) <= 2 * buckets:
        return points
    return [tuple(map(fmean, zip(*inside, strict=True))) for inside in _parts(points, buckets)]


def _parts(points: list[Point], buckets: int) -> Iterator[list[Point]]:
    """Yield the points of each of equal parts of the steps, the empty ones left out."""
    first, length = points[0][0], points[-1][0] - points[0][0] + 1
    for _, inside in groupby(points, lambda point: buckets * (point[0] - first) // length):
        yield list(inside)


@dataclass(frozen=True)
class Axis:
    """From values to a share of its length, and the values that it names."""

    low: float
    high: float
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies: 0 at the beginning, 1 at the end."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return (value - low) / (high - low)

    def ticks(self, count: int = 6) -> list[float]:
        """Return round values within the axis, about so many."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(decades) < 4 else (1,)
            found = [factor * 10.0**decade for decade in decades for factor in factors]
            inside = [value for value in found if self.low <= value <= self.high]
            return inside[:: math.ceil(len(inside) / (count + 2)) or 1]
        step = _round_step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def value_axis(chart: Chart) -> Axis:
    """Return the axis that holds all values of a chart, with room for a line at its edge."""
    values = [value for series in chart.series for _, value in series.points]
    low, high = min(values), max(values)
    if chart.can_be_log and low > 0 and high / low >= 100:
        return Axis(low / 1.2, high * 1.2, is_log=True)
    if chart.bottom is not None:
        low = min(low, chart.bottom)
    room = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low if low == chart.bottom else low - room, high + room)


def step_axis(chart: Chart) -> Axis:
    """Return the axis of a chart's steps; a single step lies in its middle."""
    steps = [step for series in chart.series for step, _ in series.points]
    low, high = chart.span or (min(steps), max(steps))
    return Axis(low, high) if low < high else Axis(low - 1, high + 1)


def path_of(points: Sequence[tuple[float, float]], steps: Axis, values: Axis) -> str:
    """Return an SVG path through points, in whole units of a chart."""
    places = (
        f"{WIDTH * steps.share(step):.0f} {HEIGHT * (1 - values.share(value)):.0f}"
        for step, value in points
    )
    return "M" + "L".join(places)


def dots_of(points: list[Point], steps: Axis, values: Axis) -> str:
    """Return an SVG path of a dot at each point: a line of no length with round ends."""
    return "".join(path_of([point], steps, values) + "h0" for point in points)


def told(value: Any) -> str:
    """Return a number in four digits or so, with a letter for large ones."""
    if not is_number(value):
        return "-"
    size = abs(value)
    for limit, divisor, letter in ((1e12, 1e12, " T"), (1e9, 1e9, " G"), (1e6, 1e6, " M")):
        if size >= limit:
            return f"{value / divisor:.4g}{letter}"
    if size >= 1000 or (value == int(value) and size >= 1):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _round_step(least: float) -> float:
    """Return the least of 1, 2, 2.5, 5 times a power of ten that is not below a number."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= least * (1 - 1e-9))
