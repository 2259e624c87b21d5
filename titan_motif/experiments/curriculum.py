"""One mixture over time against others: constant, reversed, and two ways to anneal."""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from titan_motif.components.curriculum.schedule import Phase, plan_run, weights_at
from titan_motif.components.whole_files import replace_text
from titan_motif.curriculum import phases_of
from titan_motif.experiments.builtin_corpus import files_sha256, prepare_builtin
from titan_motif.experiments.cells import Cell
from titan_motif.experiments.curriculum_page import curriculum_page
from titan_motif.experiments.job import CellOptions, read_cell_job, train
from titan_motif.experiments.page import Page
from titan_motif.experiments.records import read_cell_run
from titan_motif.network import model_args
from titan_motif.study.runner import Row

Phases = list[Phase]
MATH_FIRST = {"english": 0.3, "code": 0.2, "mathematics": 0.5}
CODE_FIRST = {"english": 0.3, "code": 0.5, "mathematics": 0.2}


def rounded(phases: Sequence[Phase]) -> Phases:
    """Return phases that end where their last whole step does."""
    plan = plan_run(phases)
    ends = [int(plan.tokens[step]) for step in plan.phase_steps[1:]]
    return [replace(phase, until_tokens=end) for phase, end in zip(phases, ends, strict=True)]


def with_final_mixture(phases: Phases) -> Phases:
    """Return the same run with the mixture of its end, from its first step on."""
    last = weights_at(phases[-1], 1)
    return [replace(phase, weights_start=last, weights_end=last) for phase in phases]


def with_annealing(phases: Phases, weights: Mapping[str, float]) -> Phases:
    """Return the same run with another mixture in its last phase."""
    return [*phases[:-1], replace(phases[-1], weights_start=weights, weights_end=weights)]


def reversed_in_time(phases: Phases) -> Phases:
    """Return the same run, of lengths and batches, with its mixture told from the end.

    What the run had at token t, this one has at the total less t. It is cut where either has an
    end of a phase, so that every piece is linear.
    """
    total = phases[-1].until_tokens
    ends = [phase.until_tokens for phase in phases]
    cuts = sorted({*ends, *(total - end for end in ends[:-1])})
    pieces = []
    for number, (begin, end) in enumerate(pairwise([0, *cuts]), start=1):
        there = next(phase for phase in phases if end <= phase.until_tokens)
        mixed = next(phase for phase in phases if total - begin <= phase.until_tokens)
        mixed_begin = max([0, *(e for e in ends if e < mixed.until_tokens)])
        span = mixed.until_tokens - mixed_begin
        start, last = (
            weights_at(mixed, (total - place - mixed_begin) / span) for place in (begin, end)
        )
        name = f"{number}_{there.name}"
        pieces.append(
            replace(there, name=name, until_tokens=end, weights_start=start, weights_end=last)
        )
    return pieces


ARMS: dict[str, Callable[[Phases], Phases]] = {
    "curriculum": list,
    "final": with_final_mixture,
    "hard_first": reversed_in_time,
    "math_over_code": lambda phases: with_annealing(phases, MATH_FIRST),
    "code_over_math": lambda phases: with_annealing(phases, CODE_FIRST),
}


def phases_toml(phases: Sequence[Phase]) -> str:
    """Return phases as a job's file has them."""
    lines = ["[curriculum]", "total_tokens = -1"]
    for phase in phases:
        lines += ["", "[[curriculum.phases]]", f'name = "{phase.name}"']
        lines += [f"until_tokens = {phase.until_tokens}", f"seq_len = {phase.seq_len}"]
        lines += [f"global_batch_tokens = {phase.batch_tokens}"]
        for name in ("weights_start", "weights_end"):
            weights = ", ".join(f"{g} = {float(x)!r}" for g, x in getattr(phase, name).items())
            lines += [f"{name} = {{ {weights} }}"]
    return "\n".join(lines) + "\n"


class CurriculumExperiment:
    """The experiment `curriculum`."""

    name = "curriculum"
    seeds_of: ClassVar = dict.fromkeys(ARMS, 3)

    def __init__(self, options: CellOptions) -> None:
        self.devices = options.devices
        self.base = base = read_cell_job(self.name, options)
        if any(p.global_batch_tokens_end != -1 for p in base.job.curriculum.phases):
            raise ValueError(f"{base.config}: batches that grow within a phase cannot be reversed")
        self.phases = rounded(phases_of(base.job, None))

    def prepare(self) -> None:
        """Prepare the corpus, unless it is there."""
        vocab_size = model_args(self.base.job).vocab_size
        self.manifest = prepare_builtin(self.base.data, vocab_size)

    def settings(self) -> dict[str, Any]:
        """Return what cells must have in common to stand in one table; after `prepare`."""
        return {
            "config_sha256": self.base.config_sha256,
            "data_sha256": files_sha256(self.manifest),
            "arms": {arm: phases_toml(change(self.phases)) for arm, change in ARMS.items()},
        }

    def job_settings(self, cell: Cell, folder: Path) -> list[str]:
        """Write a cell's file beside its folder, and return the settings of its job."""
        file = folder.with_name(f"{folder.name}.toml")
        file.parent.mkdir(parents=True, exist_ok=True)
        phases = phases_toml(ARMS[cell.arm](self.phases))
        replace_text(file, f"base = '{self.base.config.absolute()}'\n\n{phases}")
        return [
            f"--job.config_file={file}",
            f"--training.dataset_path={self.base.data}",
            f"--debug.seed={cell.seed}",
        ]

    def run(self, cell: Cell, folder: Path) -> Row:
        """Train a cell in a folder, and return what is known of it."""
        seconds = train(self.job_settings(cell, folder), folder, self.devices)
        return {"training_seconds": round(seconds, 1), **read_cell_run(folder)}

    def tell(self, row: Row) -> str:
        """Return a finished cell in a line."""
        losses = row["validation_losses"].items()
        return ", ".join(f"{name} loss {loss:.4f}" for name, loss in losses)

    def page(self, command: str) -> Page:
        """Return the frame of the page; after `prepare`."""
        return curriculum_page(
            command=command,
            base=self.base,
            arms={arm: change(self.phases) for arm, change in ARMS.items()},
            manifest=self.manifest,
        )
