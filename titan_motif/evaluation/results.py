"""The results of an evaluation: as data, as a table, in TensorBoard; and the table of tasks."""

import io
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from titan_motif.harness.presets import LOCAL_TASKS, PREFIX, PRESETS


def figures_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the harness has found, by task and group.

    {"gsm8k_cot": {"metrics": {"exact_match/strict-match": {"value": 0.5, "stderr": 0.01}},
                   "samples": 1319, "shots": 8, "version": 3.0}}

    A metric has the name of its filter after a stroke, where the task has filters.
    """
    tasks = {}
    for name, row in found["results"].items():
        metrics = {}
        for key, value in row.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = row.get(f"{metric}_stderr,{chosen}")
            is_known = isinstance(stderr, int | float) and math.isfinite(stderr)
            label = metric if chosen == "none" else f"{metric}/{chosen}"
            metrics[label] = {"value": float(value), "stderr": float(stderr) if is_known else None}
        tasks[name] = {
            "metrics": metrics,
            "samples": row.get("sample_len"),
            "shots": found.get("n-shot", {}).get(name),
            "version": found.get("versions", {}).get(name),
        }
    return tasks


def table_of(figures: Mapping[str, Any]) -> Table:
    """Return the figures of an evaluation as a table, a line for each task and metric."""
    table = Table(box=None, header_style="bold")
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for heading in ("value", "stderr", "samples", "shots"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, task in figures["tasks"].items():
        for number, (metric, found) in enumerate(task["metrics"].items()):
            stderr = found["stderr"]
            table.add_row(
                "" if number else name,
                metric,
                f"{found['value']:.4f}",
                "-" if stderr is None else f"{stderr:.4f}",
                "" if number else f"{task['samples'] or 0:,}",
                "" if number or task["shots"] is None else str(task["shots"]),
            )
    return table


def cut_note(figures: Mapping[str, Any]) -> str | None:
    """Return how many requests lost their beginning; None if none did."""
    if not figures["cut_requests"]:
        return None
    return (
        f"{figures['cut_requests']:,} requests were longer than the {figures['max_length']:,} "
        "tokens that the network is given; their beginning was cut"
    )


def lines_of(figures: Mapping[str, Any]) -> list[str]:
    """Return the table as lines of a log."""
    console = Console(file=io.StringIO(), width=120, highlight=False, color_system=None)
    console.print(table_of(figures))
    note = cut_note(figures)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return lines if note is None else [*lines, note]


def print_results(figures: Mapping[str, Any]) -> None:
    """Print the figures of an evaluation."""
    Console(width=120, highlight=False).print(table_of(figures))
    note = cut_note(figures)
    if note is not None:
        print(f"evaluate: {note}", file=sys.stderr)
    print(f"evaluate: {figures['seconds']:.1f} s", file=sys.stderr)


def values_of(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return every value under the name that TensorBoard shows, evaluation/TASK/METRIC."""
    return {
        f"evaluation/{name}/{metric}": found["value"]
        for name, task in figures["tasks"].items()
        for metric, found in task["metrics"].items()
    }


def write_tensorboard(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write every value at the results' step."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for label, value in values_of(figures).items():
            writer.add_scalar(label, value, figures["step"])


def print_tasks() -> None:
    """Print the presets and local tasks, and what each of them needs."""
    table = Table(header_style="bold", box=None)
    for heading in ("--tasks", "benchmark", "harness task", "shots", "downloads", "needs"):
        table.add_column(heading, no_wrap=heading not in ("needs", "benchmark"))
    for name, preset in PRESETS.items():
        shots = f"{preset.shots}, the report's" if preset.is_reports else f"{preset.shots}, ours"
        row = f"{PREFIX}:{name}", preset.title, preset.task, shots, preset.data, preset.needs
        table.add_row(*row)
    Console(width=160, highlight=False).print(table)
    print(f"\n{PREFIX} is all of these. Nothing is downloaded for:")
    for name, told in LOCAL_TASKS.items():
        print(f"  {name:<12} {told}")
    print("\nAny other task of the harness (`lm-eval ls tasks`) goes by its own name.")
