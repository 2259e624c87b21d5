"""The page of an experiment: question, set-up, results, conclusion, from whatever is finished.

An experiment says what is its own in a `Page`; the frame is the same for all.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from titan_motif.components.whole_files import alone_in, replace_text
from titan_motif.config import JobConfig
from titan_motif.experiments.cells import Cell
from titan_motif.experiments.measures import (
    MIN_SEEDS,
    RULE,
    Comparison,
    Measure,
    RowsByArm,
    compare,
    rows_by_arm,
    summarize,
)
from titan_motif.experiments.pictures import draw_validation
from titan_motif.study.results import Results
from titan_motif.study.runner import Row
from titan_motif.study.tables import told_versions

NO_RESULT = (
    "**Made with --quick: networks and runs are so small that nothing here is a result. It shows "
    "that everything runs.**"
)


CELL_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "tokens": lambda row: f"{row['tokens_seen']:,}",
    "training seconds": lambda row: f"{row['training_seconds']:,.0f}",
    "tokens/s, median of its logged steps": lambda row: f"{row['tokens_per_second']:,.0f}",
}
"""Of a cell that trained a model."""


class Picture(NamedTuple):
    """A picture of what is finished."""

    name: str
    """Of the file, without .png."""
    text: str
    """What it shows, in a sentence."""
    draw: Callable[[RowsByArm, Path], bool]
    """Writes the file; returns whether there was anything to draw."""


def picture_of_losses(groups: Sequence[str]) -> Picture:
    """Return the picture of every group's validation loss over tokens."""
    return Picture(
        "losses",
        "Validation loss of each group over tokens, by arm: the mean, with the range over seeds as "
        "a band.",
        partial(draw_validation, groups=groups),
    )


class Page(NamedTuple):
    """What is an experiment's own of its page."""

    name: str
    """Of the page's file, and of the folder of its pictures."""
    title: str
    question: str
    """Markdown, as all texts here."""
    setup: str
    arms: tuple[str, ...]
    compared: tuple[tuple[str, str], ...]
    """Pairs of arms of the conclusion; of each, the second is what the question is about."""
    measures: tuple[Measure, ...]
    pictures: tuple[Picture, ...]
    command: str
    """What makes it all."""
    tell_more: Callable[[RowsByArm], Sequence[str]] = lambda rows: ()
    """Returns results that are no measure of each arm, as parts of the page."""
    conclude: Callable[[RowsByArm], Sequence[str]] = lambda rows: ()
    """Returns answers that no pair of arms gives, as parts of the conclusion."""
    values: str = "Losses in nats a token"
    """What the measures without questions are."""
    cell_columns: Mapping[str, Callable[[Row], str]] = CELL_COLUMNS
    """Of the table of cells, beside the cell and its device."""


def write_page(
    page: Page, results: Results, planned: Sequence[Cell], output: Path, *, is_quick: bool
) -> Path:
    """Write OUTPUT/NAME.md and its pictures OUTPUT/NAME/*.png, and return the former.

    Args:
        planned: cells that are to be finished; those that are not are named
    """
    folder = output / page.name
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        return _write(page, results, planned, output, is_quick=is_quick)


def _write(
    page: Page, results: Results, planned: Sequence[Cell], output: Path, *, is_quick: bool
) -> Path:
    rows = rows_by_arm(results.rows, page.arms)
    folder, shown = output / page.name, []
    for picture in page.pictures:
        file = folder / f"{picture.name}.png"
        file.unlink(missing_ok=True)
        if picture.draw(rows, file):
            shown.append(picture)
    file = output / f"{page.name}.md"
    replace_text(file, render(page, results, planned, shown, is_quick=is_quick))
    return file


def render(
    page: Page,
    results: Results,
    planned: Sequence[Cell],
    shown: Sequence[Picture],
    *,
    is_quick: bool,
) -> str:
    """Return the page's text; `shown` are the pictures that were drawn."""
    rows = rows_by_arm(results.rows, page.arms)
    parts = [
        f"# {page.title}",
        f"Written by `{page.command}`, which writes it anew at every call.",
        *([NO_RESULT] if is_quick else []),
        "## Question",
        page.question,
        "## Set-up",
        page.setup,
        _told_machines(results),
        f"Command: `{page.command}`.",
        "## Results",
        _told_missing(results.rows, planned),
        *_result_tables(page, rows),
        *page.tell_more(rows),
        *(f"{p.text}\n\n![{page.title}: {p.name}]({page.name}/{p.name}.png)" for p in shown),
        "## Conclusion",
        *_conclusion(page, rows, is_quick),
        "## Cells",
        _cell_table(results.rows, page.cell_columns),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text, the others numbers."""
    ruler = "| --- |" + " ---: |" * (len(head) - 1)
    return "\n".join([_line(head), ruler, *map(_line, lines)])


def told_optimizer(job: JobConfig) -> str:
    """Tell how a cell's job learns, from the optimizer's name to the end of the set-up."""
    optimizer, schedule = job.optimizer, job.lr_scheduler
    return (
        f"{optimizer.name}, learning rate "
        f"{optimizer.lr:g}, weight decay {optimizer.weight_decay:g}, {schedule.warmup_steps} steps "
        f"of warm-up, the last {100 * schedule.decay_ratio:.0f}% falling to "
        f"{100 * schedule.min_lr_factor:g}% ({schedule.decay_type}). A cell's seed is of its "
        "initial weights and of the data's order. No rate was tuned for any arm."
    )


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |"


def _told_machines(results: Results) -> str:
    """Tell hardware, versions and commits of the finished cells."""
    known = [row["environment"] for row in results.rows.values() if "error" not in row]
    environments = known or [results.environment]
    devices = Counter(f"{e['world_size']} x {e['device_name']}" for e in environments)
    versions = dict.fromkeys(told_versions(e["versions"]) for e in environments)
    commits = dict.fromkeys(_told_commit(e) for e in environments)
    return (
        f"Hardware: {', '.join(f'{name} ({number} cells)' for name, number in devices.items())}. "
        f"Versions: {'; or '.join(versions)}. Source: {', '.join(commits)}."
    )


def _told_commit(environment: Mapping[str, Any]) -> str:
    if environment["git_commit"] is None:
        return "of no known commit"
    changed = " with changes" if environment["git_has_changes"] else ""
    return f"commit {environment['git_commit'][:10]}{changed}"


def _told_missing(rows: Mapping[str, Row], planned: Sequence[Cell]) -> str:
    missing = [str(cell) for cell in planned if str(cell) not in rows]
    failed = {name: row["error"] for name, row in rows.items() if "error" in row}
    told = []
    if missing:
        num = len(set(map(str, planned)))
        told.append(f"Missing cells (arm:seed), {len(missing)} of {num}: {', '.join(missing)}.")
    told += [f"{name} failed: {error}." for name, error in failed.items()]
    return "\n".join(told)


# ---- results


def _result_tables(page: Page, rows: RowsByArm) -> list[str]:
    """Return a table of losses and one of accuracies, and what their numbers are."""
    values = [measure for measure in page.measures if measure.num_asked is None]
    shares = [measure for measure in page.measures if measure.num_asked is not None]
    head = ["", *(f"{arm} ({_told_seeds(len(rows[arm]))})" for arm in page.arms)]
    told = []
    if values:
        told += [
            f"{page.values}: mean +- standard deviation over seeds; of one seed the value.",
            table(head, [_result_line(measure, rows) for measure in values]),
        ]
    if shares:
        told += [
            f"Right answers in percent, of {shares[0].num_asked:,} questions of each difficulty, "
            "the same in all cells: mean +- standard deviation over seeds; in brackets the "
            "standard error that the choice of questions leaves.",
            table(head, [_result_line(measure, rows) for measure in shares]),
        ]
    return told


def _told_seeds(num: int) -> str:
    return {0: "no seed", 1: "one seed"}.get(num, f"{num} seeds")


def _result_line(measure: Measure, rows: RowsByArm) -> list[str]:
    return [measure.name, *(_told_summary(measure, found) for found in rows.values())]


def _told_summary(measure: Measure, rows: Sequence[Row]) -> str:
    summary = summarize(measure, rows)
    if summary is None:
        return "-"
    told = measure.told(summary.mean)
    if summary.deviation is not None:
        told += f" +- {measure.told(summary.deviation)}"
    if measure.num_asked is not None:
        told += f" ({measure.told(measure.standard_error(summary.mean))})"
    return told


# ---- conclusion


def _conclusion(page: Page, rows: RowsByArm, is_quick: bool) -> list[str]:
    if is_quick:
        return ["None: --quick."]
    told = [part for arms in page.compared for part in _told_pair(page.measures, rows, arms)]
    return [*page.conclude(rows), *told, _told_left_out(page, rows), RULE]


def _told_left_out(page: Page, rows: RowsByArm) -> str:
    """Name the arms that have results, too few of them for a comparison of their own."""
    compared = {arm for arms in page.compared for arm in arms}
    few = [arm for arm in page.arms if arm not in compared and 0 < len(rows[arm]) < MIN_SEEDS]
    return (
        f"Compared with nobody, of fewer than {MIN_SEEDS} seeds: {', '.join(few)}." if few else ""
    )


def _told_pair(
    measures: Sequence[Measure], rows: RowsByArm, arms: tuple[str, str]
) -> tuple[str, str]:
    """Return a sentence and a table of two arms."""
    first, second = arms
    compared = {measure: compare(measure, rows, arms) for measure in measures}
    lines = [
        [measure.name, *_told_comparison(measure, comparison)]
        for measure, comparison in compared.items()
    ]
    counts = Counter(comparison.verdict for comparison in compared.values())
    return (
        f"{second} against {first}: {_told_counts(counts, first, second, len(compared))}.",
        table(["", f"{second} less {first}", "spread", "better", "in each seed"], lines),
    )


def _told_counts(counts: Counter, first: str, second: str, num: int) -> str:
    if counts["not yet"] == num:
        return "not yet; there are too few seeds"
    told = [f"{arm} is better in {counts[arm]}" for arm in (second, first)]
    told.append(f"no difference is beyond the spread in {counts['none']}")
    if counts["not yet"]:
        told.append(f"not yet in {counts['not yet']}")
    return f"of {num} measures, " + ", ".join(told)


def _told_comparison(measure: Measure, comparison: Comparison) -> list[str]:
    difference, spread, verdict, by_seed = comparison
    return [
        "-" if difference is None else _signed(measure, difference),
        "-" if spread is None else measure.told(spread),
        verdict,
        ", ".join(_signed(measure, one) for one in by_seed) or "-",
    ]


def _signed(measure: Measure, difference: float) -> str:
    return f"{'' if difference < 0 else '+'}{measure.told(difference)}"


def _cell_table(rows: Mapping[str, Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """Return what each finished cell took."""
    lines = [
        [name, *(told(row) for told in columns.values()), row["environment"]["device_name"]]
        for name, row in rows.items()
        if "error" not in row
    ]
    return table(["arm:seed", *columns, "device"], lines) if lines else "None is finished."
