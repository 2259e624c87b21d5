"""`titan-motif bench train`: whole training steps, beside torchtitan's own Llama-3.

Every cell is a job of its own in a process of its own, through the trainer that runs it: ours, or
torchtitan's. All read the same data, compile, and recompute nothing.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from rich.console import Console
from rich.table import Table

from titan_motif.bench.composition import Composition
from titan_motif.bench.contenders import CONTENDERS, Contender, compositions, ratios
from titan_motif.bench.frame import print_table
from titan_motif.components.whole_files import replace_text
from titan_motif.study.machine import CPU_NOTE
from titan_motif.study.runner import Row, run_module
from titan_motif.study.tables import told_memory, told_row, told_versions
from titan_motif.study.workload import (
    Conditions,
    Workload,
    choose_workload,
    prepare_data,
    run_cell,
)

OPTIMIZERS = "optimizers"
"""The row of Muon and AdamW by themselves."""


@dataclass
class Options:
    """Measure whole steps: ours in bf16 and FP8, with AdamW and with Muon, and Llama-3's.

    Example: titan-motif bench train --peer llama3 --only ours-fp8,llama3-fp8 --json table.json
    """

    peer: Literal["llama3", "none"] = "llama3"
    """torchtitan's Llama-3 of the same width, and one widened to as many parameters; or nobody."""
    only: str = ""
    """Names of cells, with commas; none means all of them."""
    flavor: str = ""
    """Which network of ours; none means 12_7b on a GPU, debug on a CPU."""
    layers: int | None = None
    """Blocks; none means 8 on a GPU, the flavor's on a CPU."""
    seq_len: int | None = None
    """Tokens of a sequence; none means 4096 on a GPU, 128 on a CPU."""
    batch: int | None = None
    """Sequences of a step, one micro-batch; none means 4 on a GPU, 2 on a CPU."""
    override: tuple[str, ...] = ()
    """Further settings of every job: section.field=value."""
    recipe: Literal["rowwise_with_gw_hp", "rowwise", "tensorwise"] = "rowwise_with_gw_hp"
    """Of FP8."""
    emulate: bool = False
    """Compute ours in FP8 on any device, rounded as FP8 is; times then mean nothing."""
    steps: int = 10
    """Measured steps."""
    warmup: int = 3
    """Steps before them."""
    timeout: float = 300.0
    """Seconds that a cell may take."""
    tokens_per_step: int = 40_960
    """Tokens of a GPU in a step that is composed: 16M over 400 GPUs."""
    ranks: int = 8
    """GPUs that share the optimizer's work in a step that is composed."""
    json: Path | None = None
    """Write all figures to this file."""


def main(options: Options) -> None:
    """Train every contender for a few steps, and print and write how fast they were."""
    contenders = _contenders(options)
    conditions = Conditions(options.steps, options.warmup, options.timeout, is_cold=False)
    workload = _workload(options, contenders)
    jobs = {
        name: [
            *workload.overrides(),
            *contender.resets(),
            *contender.overrides(options.recipe, options.emulate),
        ]
        for name, contender in contenders.items()
    }
    prepare_data(list(jobs.values()))
    rows: dict[str, Row] = {}

    def add(name: str, run: Callable[..., Row], *arguments: Any) -> None:
        rows[name] = _told(name, run, *arguments)
        if options.json is not None:  # at once: a machine may be gone before the last one
            _write(rows, workload, options)

    for name, contender in contenders.items():
        add(name, run_cell, jobs[name], conditions, contender.model)
    composed = [name for name in _cells(rows) if CONTENDERS[name].is_composed]
    if composed:
        add(OPTIMIZERS, _run_optimizers, jobs[composed[0]], options)
    _print(rows, _composed(rows, options), options.ranks)
    if not _cells(rows):
        raise ValueError("no cell ran")


def _cells(rows: dict[str, Row]) -> dict[str, Row]:
    """Return the rows of the jobs that ran."""
    return {name: row for name, row in rows.items() if name in CONTENDERS and "error" not in row}


def _composed(rows: dict[str, Row], options: Options) -> dict[str, Composition]:
    if "error" in rows.get(OPTIMIZERS, {"error": "not yet"}):
        return {}
    return compositions(_cells(rows), rows[OPTIMIZERS], options.tokens_per_step)


def _write(rows: dict[str, Row], workload: Workload, options: Options) -> None:
    cells, composed = _cells(rows), _composed(rows, options)
    content = {"device": next((row["device"] for row in cells.values()), None)}
    content |= {"workload": asdict(workload), "recipe": options.recipe, "rows": rows}
    content["composed"] = {
        name: asdict(one) | {"tokens_per_second": one.tokens_per_second}
        for name, one in composed.items()
    }
    content["ratios"] = ratios(cells, composed)
    replace_text(options.json, json.dumps(content, indent=1) + "\n")


def _contenders(options: Options) -> dict[str, Contender]:
    names = options.only.split(",") if options.only else list(CONTENDERS)
    for name in names:
        if name not in CONTENDERS:
            allowed = ", ".join(CONTENDERS)
            raise ValueError(f"--only has {name!r}; of {allowed} any are allowed")
        if options.only and options.peer == "none" and name.startswith("llama3"):
            raise ValueError(f"--only has {name!r}, and --peer is none; one of them is allowed")
    for name in ("tokens_per_step", "ranks"):
        if getattr(options, name) < 1:
            told = name.replace("_", "-")
            raise ValueError(f"--{told} is {getattr(options, name)}; at least 1 is needed")
    chosen = {name: CONTENDERS[name] for name in CONTENDERS if name in names}
    if options.peer == "none":
        chosen = {name: one for name, one in chosen.items() if one.model == "motif2"}
    return chosen


def _workload(options: Options, contenders: dict[str, Contender]) -> Workload:
    workload = choose_workload(
        options.flavor, options.layers, options.seq_len, options.batch, more=options.override
    )
    decided = [
        text
        for one in contenders.values()
        for text in one.overrides(options.recipe, options.emulate)
    ]
    workload.check_more(decided)
    of_muon = [setting for setting in options.override if setting.startswith("optimizer.")]
    if of_muon and any(one.is_composed for one in contenders.values()):
        raise ValueError(
            f"--override has {of_muon[0]!r}; Muon's part of a composed step is measured with its "
            "own defaults: choose other cells (--only)"
        )
    return workload


def _told(name: str, run: Callable[..., Row], *arguments: Any) -> Row:
    """Run a measurement, and tell of it on the standard error."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    begin = time.perf_counter()
    with console.status(name):
        row = run(*arguments)
    told = told_row(row) if "tokens_per_second" in row or "error" in row else "done"
    console.print(f"{name}  {told}  ({time.perf_counter() - begin:.0f} s)")
    return row


def _run_optimizers(job: Sequence[str], options: Options) -> Row:
    arguments = ["--ranks", str(options.ranks), "--", *job]
    return run_module("titan_motif.bench.composition", arguments, options.timeout)


def _print(rows: dict[str, Row], composed: dict[str, Composition], ranks: int) -> None:
    for name, row in rows.items():
        if "error" in row:
            print(f"not measured: {name}: {row['error']}")
    cells = _cells(rows)
    if cells:
        first = next(iter(cells.values()))
        print(
            f"{first['device']}; {told_versions(first['versions'])}; "
            f"{first['tokens_per_step']:,} tokens a step"
        )
        if "CPU" in first["device"]:
            print(CPU_NOTE)
        print_table(_table(cells, composed), 140)
    for name, one in composed.items():
        optimizer = "Muon" if CONTENDERS[name].is_composed else "AdamW"
        print(f"{name}, composed for one of {ranks} ranks ({optimizer}): {one}")


def _table(rows: dict[str, Row], composed: dict[str, Composition]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("cell", no_wrap=True)
    for heading in ("parameters", "tokens/s", "TFLOPS", "MFU", "peak GiB", "step ms"):
        table.add_column(heading, justify="right")
    table.add_column("TFLOPS / llama3", justify="right")
    table.add_column("tokens/s / widened", justify="right")
    compared = ratios(rows, composed)
    for name, row in rows.items():
        _add_row(table, name, row, compared[name])
    for name, one in composed.items():
        rate = one.tokens_per_second / rows[name]["tokens_per_second"]
        row = rows[name] | {
            "tokens_per_second": one.tokens_per_second,
            "tflops": rows[name]["tflops"] * rate,
            "mfu": None if rows[name]["mfu"] is None else rows[name]["mfu"] * rate,
            "peak_memory_gib": None,
            "step_ms": one.step_ms,
        }
        label = f"{name}, composed"
        _add_row(table, label, row, compared[label])
    return table


def _add_row(table: Table, label: str, row: Row, compared: dict[str, float | None]) -> None:
    table.add_row(
        label,
        f"{row['parameters'] / 1e6:,.1f}M",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['tflops']:.4g}",
        "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f}%",
        told_memory(row),
        f"{row['step_ms']:.1f}",
        *("-" if ratio is None else f"{ratio:.3f}" for ratio in compared.values()),
    )
