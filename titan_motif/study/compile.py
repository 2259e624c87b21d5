"""`titan-motif study compile`: what compiling, kernels, FP8 and recomputation do to a step."""

import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from rich.console import Console

from titan_motif.config_files import read_files
from titan_motif.run_records import describe_environment
from titan_motif.study.axes import AXES, Cell, cells_of
from titan_motif.study.machine import CPU_NOTE
from titan_motif.study.results import Results
from titan_motif.study.tables import draw, to_csv, to_markdown, told_row
from titan_motif.study.workload import (
    Conditions,
    Workload,
    choose_workload,
    prepare_data,
    run_cell,
)


@dataclass
class Options:
    """Measure training steps of every combination of the axes, each in a process of its own.

    A cell that fails is a row that says why. What is finished is kept: started again, a study goes
    on where it was. FOLDER then holds results.json, results.csv, results.md and results.png.

    Example: titan-motif study compile --precision bf16 --checkpointing none,products --layers 4
    """

    config: Path | None = None
    """A job's TOML file, read without its curriculum's phases; none means a flavor."""
    flavor: str = ""
    """Which network; none means 12_7b on a GPU, debug on a CPU."""
    layers: int | None = None
    """Blocks; none means 8 of a flavor on a GPU, else all."""
    seq_len: int | None = None
    """Tokens of a sequence; none: the file's training.seq_len, or 4096 on a GPU, 128 on a CPU."""
    batch: int | None = None
    """Sequences of a micro-batch, one a step; none means 4 on a GPU, 2 on a CPU."""
    override: tuple[str, ...] = ()
    """Further settings of the job: section.field=value."""
    modes: str = ",".join(AXES["modes"])
    """Whether blocks and loss are compiled."""
    kernels: str = ",".join(AXES["kernels"])
    """Path of norms and PolyNorm."""
    precision: str = ",".join(AXES["precision"])
    """bf16 (float32 on a CPU), or a recipe of FP8."""
    checkpointing: str = ",".join(AXES["checkpointing"])
    """What the backward pass recomputes."""
    attention: str = ",".join(AXES["attention"])
    """Path of differential attention."""
    cells: str = ""
    """Some cells in place of the axes' product: MODE/KERNELS/PRECISION/CHECKPOINTING/ATTENTION."""
    steps: int = 10
    """Measured steps."""
    warmup: int = 3
    """Steps before them."""
    timeout: float = 300.0
    """Seconds that a cell may take."""
    output: Path = Path("outputs/study_compile")
    """Folder of the results."""
    fresh: bool = False
    """Forget the results in the folder."""
    retry: bool = False
    """Run cells again that failed."""
    emulate: bool = False
    """Compute FP8 cells on any device, rounded as FP8 is; their times then mean nothing."""
    shared_cache: bool = False
    """Let a cell find what earlier ones compiled: faster, and compile seconds mean little."""


def main(options: Options) -> None:
    """Measure the cells that are missing, and write tables and picture."""
    cells = cells_of({axis: getattr(options, axis) for axis in AXES}, options.cells)
    workload = _workload(options, cells)
    conditions = Conditions(
        options.steps, options.warmup, options.timeout, is_cold=not options.shared_cache
    )
    environment = describe_environment(world_size=1)
    settings = _settings(options, workload, environment)
    results = Results(options.output / "results.json", settings, environment)
    if options.fresh:
        results.path.unlink(missing_ok=True)
    else:
        results.resume()
    due = [
        cell
        for cell in cells
        if str(cell) not in results.rows or (options.retry and "error" in results.rows[str(cell)])
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    jobs = {
        cell: [*workload.overrides(), *cell.resets(), *cell.overrides(options.emulate)]
        for cell in cells
    }
    prepare_data(list(jobs.values()))
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if len(due) < len(cells):
        console.print(f"{len(cells) - len(due)} of {len(cells)} cells are there already")
    for number, cell in enumerate(due, start=1):
        begin = time.perf_counter()
        with console.status(f"{number}/{len(due)} {cell}"):
            row = run_cell(jobs[cell], conditions)
        results.add(str(cell), row)
        seconds = time.perf_counter() - begin
        console.print(f"{number}/{len(due)}  {cell}  {told_row(row)}  ({seconds:.0f} s)")
    _write_tables(results, options.output)
    if all("error" in results.rows[str(cell)] for cell in cells):
        raise ValueError("no cell ran")


def _workload(options: Options, cells: list[Cell]) -> Workload:
    workload = choose_workload(
        options.flavor,
        options.layers,
        options.seq_len,
        options.batch,
        options.config,
        options.override,
    )
    workload.check_more([text for cell in cells for text in cell.overrides(options.emulate)])
    return workload


def _settings(options: Options, workload: Workload, environment: dict[str, Any]) -> dict[str, Any]:
    """Return what two studies must share for their rows to stand in one table."""
    versions = environment["versions"]
    text = None
    if workload.config is not None:
        text = b"".join(file.read_bytes() for file, _ in read_files(workload.config))
    return {
        "device": environment["device_name"],
        **{package: versions[package] for package in ("torch", "triton", "torchao")},
        "config": None if workload.config is None else str(workload.config),
        "config_sha256": None if text is None else hashlib.sha256(text).hexdigest(),
        "flavor": workload.flavor,
        "layers": workload.layers,
        "seq_len": workload.seq_len,
        "batch": workload.batch,
        "override": list(workload.more),
        "steps": options.steps,
        "warmup": options.warmup,
        "emulate": options.emulate,
        "shared_cache": options.shared_cache,
    }


def _write_tables(results: Results, folder: Path) -> None:
    (folder / "results.csv").write_text(to_csv(results))
    table = to_markdown(results)
    (folder / "results.md").write_text(table)
    draw(results, folder / "results.png")
    if results.environment["device_type"] == "cpu":
        print(CPU_NOTE)
    sys.stdout.write(table)
    print(f"\nresults: {folder}")
