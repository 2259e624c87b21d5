"""The results of a study as CSV, as Markdown for the documentation, and as a picture."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from titan_motif.study.axes import AXES, Cell
from titan_motif.study.results import Results
from titan_motif.study.runner import Row

FIGURES = (
    "tokens_per_second",
    "tflops",
    "mfu",
    "step_ms",
    "step_ms_min",
    "step_ms_max",
    "forward_backward_ms",
    "optimizer_ms",
    "peak_memory_gib",
    "peak_reserved_gib",
    "compile_seconds",
    "dynamo_seconds",
    "graph_breaks",
    "graphs",
    "recompiles",
    "final_loss",
    "parameters",
    "tokens_per_step",
    "error",
)
"""Columns of the CSV file, after the axes."""

_COLUMNS: dict[str, Callable[[Row], str]] = {
    "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
    "TFLOPS": lambda row: f"{row['tflops']:.3g}",
    "MFU %": lambda row: "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f}",
    "step ms": lambda row: f"{row['step_ms']:.1f}",
    "forward + backward ms": lambda row: f"{row['forward_backward_ms']:.1f}",
    "optimizer ms": lambda row: f"{row['optimizer_ms']:.1f}",
    "peak GiB": lambda row: told_memory(row),
    "compile s": lambda row: f"{row['compile_seconds']:.1f}",
    "graphs": lambda row: f"{row['graphs']}",
    "breaks": lambda row: f"{row['graph_breaks']}",
    "recompiles": lambda row: f"{row['recompiles']}",
    "last loss": lambda row: f"{row['final_loss']:.4f}",
}
"""Columns of the Markdown table, after the axes."""

_TOLD_SETTINGS = (
    "config",
    "flavor",
    "layers",
    "seq_len",
    "batch",
    "override",
    "emulate",
    "shared_cache",
)
_NOTE = """\
Medians of {steps} steps after {warmup} others. TFLOPS count what torchtitan counts: the products of
forward and backward pass, attention over the full square, nothing that is recomputed; MFU is of the
device's bf16 peak. Peak memory is what the allocator had handed out in the measured steps. compile
s is what the first step took beyond the median: compiling, and whatever else happens once.
recompiles are graphs that the measured steps still compiled."""


def told_memory(row: Row) -> str:
    """Return the peak in GiB, or a dash where nobody counts it."""
    return "-" if row["peak_memory_gib"] is None else f"{row['peak_memory_gib']:.1f}"


def told_versions(versions: dict[str, str | None]) -> str:
    """Return versions by package on one line, those that are known."""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def told_row(row: Row) -> str:
    """Return a cell in a line, as it is told while a study goes on."""
    if "error" in row:
        return f"failed: {row['error']}"
    mfu = "" if row["mfu"] is None else f"  MFU {100 * row['mfu']:.1f}%"
    memory = "" if row["peak_memory_gib"] is None else f"  {told_memory(row)} GiB"
    return f"{row['tokens_per_second']:,.0f} tokens/s  {row['tflops']:.3g} TFLOPS{mfu}{memory}"


def to_csv(results: Results) -> str:
    """Return all figures of all cells, one line each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*Cell._fields, *FIGURES])
    for name, row in results.rows.items():
        writer.writerow([*name.split("/"), *(row.get(figure) for figure in FIGURES)])
    return buffer.getvalue()


def to_markdown(results: Results) -> str:
    """Return the table of the cells that ran, and below it why others did not."""
    environment, settings = results.environment, results.settings
    ran = {name: row for name, row in results.rows.items() if "error" not in row}
    lines = [
        f"{environment['device_name']}; {told_versions(environment['versions'])}.",
        "",
        "; ".join(f"{name} {settings[name]}" for name in _TOLD_SETTINGS if settings[name]) + ".",
        "",
        *_NOTE.format(**settings).splitlines(),
        "",
        "| " + " | ".join([*Cell._fields, *_COLUMNS]) + " |",
        "|" + " --- |" * len(Cell._fields) + " ---: |" * len(_COLUMNS),
    ]
    for name, row in ran.items():
        figures = (tell(row) for tell in _COLUMNS.values())
        lines.append("| " + " | ".join([*name.split("/"), *figures]) + " |")
    failed = {name: row for name, row in results.rows.items() if "error" in row}
    if failed:
        lines += ["", "Did not run:", ""]
        lines += [f"- `{name}`: {row['error']}" for name, row in failed.items()]
    return "\n".join(lines) + "\n"


def draw(results: Results, path: Path) -> None:
    """Draw tokens/s of each cell as a bar, coloured by precision, its peak memory beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    names = list(results.rows)
    colors = {word: f"C{index}" for index, word in enumerate(AXES["precision"])}
    precision = Cell._fields.index("precision")
    figure, axes = pyplot.subplots(
        figsize=(10, 1.5 + 0.28 * max(len(names), 1)), layout="constrained"
    )
    heights = range(len(names))
    for height, name in zip(heights, names, strict=True):
        row = results.rows[name]
        if "error" in row:
            axes.text(0, height, " did not run", va="center", fontsize=8, color="grey")
            continue
        axes.barh(height, row["tokens_per_second"], color=colors[name.split("/")[precision]])
        memory = "" if row["peak_memory_gib"] is None else f", {told_memory(row)} GiB"
        told = f" {row['tokens_per_second']:,.0f}{memory}"
        axes.text(row["tokens_per_second"], height, told, va="center", fontsize=8)
    axes.set_yticks(heights, names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)  # room for the figures beside the bars
    axes.set(xlabel="tokens/s", title=results.environment["device_name"])
    shown = dict.fromkeys(name.split("/")[precision] for name in names)
    handles = [Patch(color=colors[word], label=word) for word in shown]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
