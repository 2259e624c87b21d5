"""Parallel Muon against Distributed Muon: time and memory of a step, and what the plan said."""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from titan_motif.bench.muon import NUM_STEPS, matrices_of
from titan_motif.components.foreign_files import MAX_RECORD_BYTES, read_json
from titan_motif.components.muon.cost_model import DEFAULT_RATES
from titan_motif.experiments.cells import Cell
from titan_motif.experiments.job import CellOptions, launcher, run_and_show
from titan_motif.experiments.muon_page import TimedArm, muon_page
from titan_motif.experiments.page import Page
from titan_motif.study.runner import Row

SIMULATED_RANKS = 8


class Arm(NamedTuple):
    """Whose step is timed."""

    mode: Literal["parallel", "distributed"]
    is_simulated: bool
    """As one of SIMULATED_RANKS, alone on a device; else with a process for each device."""


ARMS = {
    "parallel_8": Arm("parallel", True),
    "distributed_8": Arm("distributed", True),
    "parallel": Arm("parallel", False),
    "distributed": Arm("distributed", False),
}
CHUNKS = {"parallel": (1, 2, 4, 8, None), "distributed": (1, 2, 4)}
"""Matrices for each rank in a chunk; None is all at once, of which no GPU has room where every rank
holds every matrix."""


class MuonExperiment:
    """The experiment `muon`."""

    name = "muon"
    seeds_of: ClassVar = dict.fromkeys(ARMS, 3)

    def __init__(self, options: CellOptions) -> None:
        for name in ("tokens", "config", "data"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} is given; the experiment muon trains nothing")
        self.devices = options.devices
        is_large = options.devices.type == "cuda" and not options.is_quick
        self.flavor = "12_7b" if is_large else "debug"
        self.layers_of_real = 20 if is_large else None
        """What few GPUs have room for; None is all."""
        self.num_real = options.devices.count if options.devices.type == "cuda" else 2

    def prepare(self) -> None:
        """Do nothing: gradients are drawn."""

    def ranks(self, arm: Arm) -> int:
        """Return how many share the matrices."""
        return SIMULATED_RANKS if arm.is_simulated else self.num_real

    def layers(self, arm: Arm) -> int | None:
        """Return of how many blocks the matrices are, None of all."""
        return None if arm.is_simulated else self.layers_of_real

    def num_matrices(self, arm: Arm) -> int:
        """Return how many matrices a step has."""
        return len(matrices_of(self.flavor, self.layers(arm)))

    def settings(self) -> dict[str, Any]:
        """Return what cells must have in common to stand in one table."""
        return {
            "flavor": self.flavor,
            "steps": NUM_STEPS,
            "arms": {name: self.words(arm) for name, arm in ARMS.items()},
        }

    def words(self, arm: Arm) -> list[str]:
        """Return an arm's options of `titan-motif bench muon`."""
        ranks, num = self.ranks(arm), self.num_matrices(arm)
        chunks = (num if size is None else min(size * ranks, num) for size in CHUNKS[arm.mode])
        words = ["--flavor", self.flavor, "--modes", arm.mode]
        words += ["--chunk-size", ",".join(map(str, dict.fromkeys(chunks)))]
        words += ["--ranks", str(ranks)] if arm.is_simulated else []
        layers = self.layers(arm)
        return [*words, *([] if layers is None else ["--layers", str(layers)])]

    def run(self, cell: Cell, folder: Path) -> Row:
        """Time an arm's steps in processes of their own, and return what they tell.

        Raises: RuntimeError, one line, if they fail, or if there are too few GPUs
        """
        arm = ARMS[cell.arm]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        figures = folder / "figures.json"
        launch = [sys.executable]
        if not arm.is_simulated:
            if self.num_real < 2:
                raise RuntimeError(f"{cell.arm} needs 2 GPUs; this machine shows {self.num_real}")
            launch = launcher(self.num_real, folder)
        command = [*launch, "-m", "titan_motif.cli", "bench", "muon"]
        command += [*self.words(arm), "--seed", str(cell.seed), "--json", str(figures)]
        run_and_show(command, self.devices.environment, "timing")
        return read_json(figures, MAX_RECORD_BYTES, is_record=True)

    def tell(self, row: Row) -> str:
        """Return a finished cell in a line."""
        return ", ".join(f"{r['chunk_size']}: {r['ms']:.1f} ms" for r in row["results"])

    def page(self, command: str) -> Page:
        """Return the frame of the page."""
        return muon_page(
            command=command,
            flavor=self.flavor,
            is_on_gpu=self.devices.type == "cuda",
            arms={
                name: TimedArm(
                    arm.mode,
                    self.ranks(arm),
                    arm.is_simulated,
                    self.num_matrices(arm),
                )
                for name, arm in ARMS.items()
            },
            rates=DEFAULT_RATES,
        )
