"""The page of the experiment `muon`: steps by chunk size, measured and as planned."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from titan_motif.components.muon.cost_model import Rates
from titan_motif.experiments.lines import Line
from titan_motif.experiments.measures import Measure, RowsByArm
from titan_motif.experiments.page import Page, Picture, table
from titan_motif.experiments.pictures import draw_sizes
from titan_motif.study.runner import Row

QUESTION = """\
The report's Table 4 sets Parallel Muon, in which one rank orthogonalises a matrix, against
Distributed Muon, in which every rank does. What does that save of a step, and how much of it does
the plan foretell (`titan-motif plan`)? And what is the size of a chunk worth, the matrices that are
exchanged together, in time and in memory?"""
REPORTS_CHUNK = 4
"""Matrices for each rank in a chunk: the report's, and the default."""
CLOSE = 0.02
"""How much slower than the fastest chunk size one may be to be named for its memory."""


class TimedArm(NamedTuple):
    """What the page tells of an arm."""

    mode: str
    ranks: int
    """That share the matrices."""
    is_simulated: bool
    num_matrices: int


def muon_page(
    *,
    command: str,
    flavor: str,
    is_on_gpu: bool,
    arms: Mapping[str, TimedArm],
    rates: Rates,
) -> Page:
    """Return the frame of the page.

    Args:
        is_on_gpu: a CPU tells no memory, and the plan's rates are a GPU's
    """
    of_chunk = f"chunks of {REPORTS_CHUNK} a rank"
    ranks = {name: arm.ranks for name, arm in arms.items()}
    times = [
        Measure(f"ms, {of_chunk}", partial(_at_reports_chunk, what="ms"), True, digits=1),
        Measure("ms, fastest chunk size", _fastest_ms, True, digits=1),
    ]
    megabytes = partial(_at_reports_chunk, what="peak_mb")
    memory = [Measure(f"MB, {of_chunk}", megabytes, True, digits=0)] if is_on_gpu else []
    milliseconds = partial(_over, what="ms")
    panels = {"time of a step": ("ms", milliseconds, lambda row: ([], []))}
    if is_on_gpu:
        panels = {
            "time of a step": ("ms", milliseconds, partial(_over, what="planned_ms")),
            "memory over what is resident": (
                "MB",
                partial(_over, what="peak_mb"),
                partial(_over, what="planned_mb"),
            ),
        }
    return Page(
        name="muon",
        title="Parallel Muon against Distributed Muon",
        question=QUESTION,
        setup="\n\n".join([_told_arms(arms, flavor), _told_timing(rates)]),
        arms=tuple(arms),
        compared=(("distributed_8", "parallel_8"), ("distributed", "parallel")),
        measures=(*times, *memory),
        pictures=(
            Picture(
                "chunks",
                "By chunk size: measured (points: the mean, with the range over seeds as bars) and "
                "by the plan (dashed).",
                partial(draw_sizes, panels=panels, label="matrices in a chunk"),
            ),
        ),
        command=command,
        tell_more=_told_chunks,
        conclude=partial(_concluded, ranks=ranks),
        values="Steps by time and by memory over what is resident (weights, gradients, momentum)",
        cell_columns={
            "matrices": lambda row: f"{row['matrices']:,}",
            "seconds": lambda row: f"{row['seconds']:,.0f}",
        },
    )


def _told_arms(arms: Mapping[str, TimedArm], flavor: str) -> str:
    lines = [
        [
            name,
            arm.mode,
            str(arm.ranks),
            "one, of a simulated group" if arm.is_simulated else "all",
            str(arm.num_matrices),
        ]
        for name, arm in arms.items()
    ]
    head = ["arm", "mode", "ranks", "ranks that run", f"matrices of {flavor}"]
    return table(head, lines)


def _told_timing(rates: Rates) -> str:
    return (
        "A cell is a process, or one for each rank: of every chunk size a step that compiles, then "
        "the median of five, of the slowest rank; a seed draws the gradients anew. A simulated "
        "rank packs, copies and computes what it would, receives random data, and waits for no "
        f"network. The plan's rates: {rates.flops / 1e12:.0f} TFLOP/s, and "
        f"{rates.bytes_in_node / 1e9:.0f} GB/s between GPUs of a node (of simulated ranks, nothing "
        "for the exchange). In its time are Newton-Schulz and what of the exchange is not hidden "
        "behind it; momentum, packing, unpacking and the update are not."
    )


def _by_chunk(row: Row) -> dict[int, dict[str, Any]]:
    return {result["chunk_size"]: result for result in row["results"]}


def _at_reports_chunk(row: Row, what: str) -> float:
    size = min(REPORTS_CHUNK * row["ranks"], row["matrices"])
    return next(result[what] for result in row["results"] if result["chunk_size"] == size)


def _fastest_ms(row: Row) -> float:
    return min(result["ms"] for result in row["results"])


def _over(row: Row, what: str) -> Line:
    found = _by_chunk(row)
    return list(found), [result[what] for result in found.values()]


# ---- by chunk size


def _finished(rows: RowsByArm) -> dict[str, list[dict[int, dict[str, Any]]]]:
    return {arm: [_by_chunk(row) for row in found] for arm, found in rows.items() if found}


def _told_chunks(rows: RowsByArm) -> list[str]:
    """Return a table of all chunk sizes."""
    finished = _finished(rows)
    if not finished:
        return []
    lines = [
        _chunk_line(f"{arm}, {size}", [cell[size] for cell in cells])
        for arm, cells in finished.items()
        for size in cells[0]
    ]
    head = ["arm, chunk", "ms", "by plan", "measured / plan", "peak MB", "by plan", "TFLOPS/GPU"]
    return [
        "By chunk size: the mean over seeds, of times +- the standard deviation. TFLOPS/GPU are "
        "the report's: full products, each matrix once, over all ranks' time.",
        table([*head, "TFLOP a rank", "GB a rank"], lines),
    ]


def _concluded(rows: RowsByArm, ranks: Mapping[str, int]) -> list[str]:
    """Tell how near the plan is, and what the chunk size is worth to each arm."""
    finished = _finished(rows)
    if not finished:
        return []
    best = "\n".join(f"- {_told_best(arm, cells, ranks[arm])}" for arm, cells in finished.items())
    timed = [[cell[size] for cell in cells] for cells in finished.values() for size in cells[0]]
    if any(results[0]["peak_mb"] is None for results in timed):
        return [best]
    times, sizes = (
        [statistics.fmean(r[measured] for r in results) / results[0][planned] for results in timed]
        for measured, planned in (("ms", "planned_ms"), ("peak_mb", "planned_mb"))
    )
    return [
        f"The plan: a step takes {_range(times)} times what it says, which counts products and "
        f"exchange alone, and {_range(sizes)} times its memory.",
        best,
    ]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _chunk_line(name: str, results: Sequence[dict[str, Any]]) -> list[str]:
    def mean(of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.fmean(map(of, results))

    first = results[0]  # what follows from sizes alone is the same in all
    milliseconds, planned = mean(lambda r: r["ms"]), first["planned_ms"]
    is_on_gpu = first["peak_mb"] is not None
    return [
        name,
        f"{milliseconds:,.1f} +- {_deviation(results):,.1f}",
        f"{planned:,.1f}" if is_on_gpu else "-",
        f"{milliseconds / planned:.2f}" if is_on_gpu else "-",
        f"{mean(lambda r: r['peak_mb']):,.0f}" if is_on_gpu else "-",
        f"{first['planned_mb']:,.0f}",
        _short(mean(lambda r: r["tflops_per_gpu"])),
        _short(first["tflop_of_rank"]),
        _short(first["gb_of_rank"]),
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _deviation(results: Sequence[dict[str, Any]]) -> float:
    return statistics.stdev(r["ms"] for r in results) if len(results) > 1 else 0.0


def _told_best(arm: str, cells: Sequence[dict[int, dict[str, Any]]], ranks: int) -> str:
    """Tell the fastest chunk size, and the smallest one that is about as fast."""
    means = {size: statistics.fmean(cell[size]["ms"] for cell in cells) for size in cells[0]}
    best = min(means, key=lambda size: means[size])
    smallest = min(size for size in means if means[size] <= (1 + CLOSE) * means[best])
    told = f"{arm}: fastest with {best} matrices in a chunk ({best / ranks:g} a rank)"
    if best == min(means):
        return f"{told}, the fewest that were timed."
    if smallest == best:
        return f"{told}; every smaller chunk is more than {100 * CLOSE:g}% slower."
    return f"{told}; with {smallest} it is {100 * (means[smallest] / means[best] - 1):.1f}% slower."
