"""`titan-motif experiment`: train the cells of an experiment, and write its page."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import tyro

from titan_motif.experiments.cells import Cell, choose_cells
from titan_motif.experiments.curriculum import CurriculumExperiment
from titan_motif.experiments.gda import Gda
from titan_motif.experiments.growth import Growth
from titan_motif.experiments.job import CellOptions, choose_devices
from titan_motif.experiments.muon import MuonExperiment
from titan_motif.experiments.page import Page, write_page
from titan_motif.run_records import describe_environment
from titan_motif.study.results import Results
from titan_motif.study.runner import Row, describe_error

MARGIN = 1.1
"""What a cell may take, of the longest one of its arm."""


class Experiment(Protocol):
    """What the command needs of an experiment."""

    name: str
    seeds_of: dict[str, int]
    """Seeds of each arm, unless others are asked for."""

    def prepare(self) -> None:
        """Make what all cells need, unless it is there."""

    def settings(self) -> dict:
        """Return what cells must have in common to stand in one table; after `prepare`."""

    def run(self, cell: Cell, folder: Path) -> Row:
        """Run a cell in a folder, and return what is known of it: numbers, as JSON has them."""

    def tell(self, row: Row) -> str:
        """Return a finished cell in a line."""

    def page(self, command: str) -> Page:
        """Return the frame of the page; after `prepare`.

        Args:
            command: what makes all cells
        """


EXPERIMENTS = {kind.name: kind for kind in (Gda, Growth, MuonExperiment, CurriculumExperiment)}


@dataclass
class Options:
    """Run what an experiment compares, a cell (arm and seed) at a time, and write its page.

    A finished cell is kept: with --resume, an experiment goes on where it was.

    Example: titan-motif experiment gda --cells standard:0,ratio4:0 --resume --time-limit 540
    """

    name: tyro.conf.Positional[Literal[*EXPERIMENTS]]
    """Which: gda is standard attention against grouped differential attention, growth a grown model
    against one from scratch, muon Parallel Muon's step against Distributed Muon's, curriculum one
    mixture over time against others."""
    cells: str = ""
    """Some cells alone: ARM:SEED with commas."""
    seeds: int | None = None
    """Seeds of every arm; none means the experiment's own choice, with --quick one."""
    tokens: int | None = None
    """Tokens of each training run; none means the configuration's."""
    resume: bool = False
    """Keep the cells that are finished, if they are of the same settings, data and versions."""
    time_limit: float | None = None
    """Seconds in which the command should end: a cell that would not is not begun."""
    device: str = "auto"
    """cuda (all GPUs), cpu, or auto."""
    quick: bool = False
    """Tiny networks, a few tokens, one seed: it shows that everything runs, and no result."""
    config: Path | None = None
    """The job's TOML file; none means train_configs/experiment_NAME.toml."""
    data: Path | None = None
    """Folder of the prepared data; none means the configuration's."""
    runs: Path = Path("outputs/experiments")
    """Folder of the training runs: a folder for each cell."""
    output: Path | None = None
    """Folder of the page NAME.md and of NAME/results.json; none means docs/experiments, with
    --quick outputs/experiments/quick."""


def main(options: Options) -> None:
    """Run the cells that are missing, as many as the time allows, and write the page after each."""
    begin = time.perf_counter()
    devices = choose_devices(options.device)
    if options.time_limit is not None and not options.time_limit > 0:
        raise ValueError(f"--time-limit is {options.time_limit}; more than 0 is needed")
    kind = EXPERIMENTS[options.name]
    # That everything runs, one seed shows.
    seeds_of = dict.fromkeys(kind.seeds_of, 1) if options.quick else kind.seeds_of
    cells = choose_cells(seeds_of, options.seeds, options.cells)
    output = options.output
    if output is None:
        output = Path("outputs/experiments/quick" if options.quick else "docs/experiments")
    file = output / options.name / "results.json"
    if file.exists() and not options.resume:
        raise ValueError(f"{file}: is there already; --resume goes on, --output is another folder")
    experiment: Experiment = kind(
        CellOptions(devices, options.quick, options.tokens, options.config, options.data)
    )
    experiment.prepare()
    environment = describe_environment(devices.count)
    versions = {name: environment["versions"][name] for name in ("torch", "triton")}
    settings = {"device_type": devices.type, **versions, **experiment.settings()}
    results = Results(file, settings, environment, hint="--output is another folder")
    results.resume()
    file.parent.mkdir(parents=True, exist_ok=True)
    page = experiment.page(_full_command(options))
    planned = list(dict.fromkeys([*choose_cells(seeds_of, options.seeds, ""), *cells]))
    write = partial(write_page, page, results, planned, output, is_quick=options.quick)
    write()
    due = [cell for cell in cells if "error" in results.rows.get(str(cell), {"error": ""})]
    if len(due) < len(cells):
        print(f"{len(cells) - len(due)} of {len(cells)} cells are there already")
    for number, cell in enumerate(due, start=1):
        if options.time_limit is not None:
            left = options.time_limit - (time.perf_counter() - begin)
            if (needed := expected_seconds(results.rows, cell)) > left:
                print(
                    f"{cell} is not begun: it may take {needed:.0f} s, and {left:.0f} s are left; "
                    f"{len(due) - number + 1} cells are missing"
                )
                break
        print(f"{number}/{len(due)}  {cell}")
        row = _run(experiment, cell, options.runs / options.name / f"{cell.arm}_{cell.seed}")
        results.add(str(cell), row | {"environment": environment})
        write()
        told = f"failed: {row['error']}" if "error" in row else experiment.tell(row)
        print(f"{number}/{len(due)}  {cell}  {told}  ({row['seconds']:.0f} s)", flush=True)
    print(f"results: {file}\npage: {output / page.name}.md")
    _check_finished(results.rows, cells)


def _full_command(options: Options) -> str:
    """Return the command that makes all cells, with what its results depend on."""
    words = ["titan-motif", "experiment", options.name]
    for name in ("tokens", "seeds", "config", "data"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join([*words, *(["--quick"] if options.quick else []), "--resume"])


def _run(experiment: Experiment, cell: Cell, folder: Path) -> Row:
    begin = time.perf_counter()
    try:
        row = experiment.run(cell, folder.absolute())
    except (RuntimeError, ValueError, OSError) as error:
        row = {"error": describe_error(error)}
    return row | {"seconds": round(time.perf_counter() - begin, 1)}


def expected_seconds(rows: dict[str, Row], cell: Cell) -> float:
    """Return what a cell may take, by the finished ones of its arm, else of all; 0 if unknown."""
    finished = {name: row["seconds"] for name, row in rows.items() if "error" not in row}
    alike = [seconds for name, seconds in finished.items() if name.split(":")[0] == cell.arm]
    return MARGIN * max(alike or finished.values(), default=0.0)


def _check_finished(rows: dict[str, Row], cells: Sequence[Cell]) -> None:
    failed = [str(cell) for cell in cells if "error" in rows.get(str(cell), {})]
    if failed:
        raise ValueError(f"{', '.join(failed)} failed: {rows[failed[0]]['error']}")
