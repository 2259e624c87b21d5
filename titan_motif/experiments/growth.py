"""A model grown from a trained small one: equal to it at first, and against one from scratch."""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import dataclasses
import shutil
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from titan_motif.components.foreign_files import MAX_RECORD_BYTES, read_json
from titan_motif.components.saved_steps import step_to_begin_from
from titan_motif.corpus.prepare import GROUPS
from titan_motif.experiments.builtin_corpus import files_sha256, prepare_builtin
from titan_motif.experiments.cells import Cell
from titan_motif.experiments.growth_equality import compare_on_text
from titan_motif.experiments.growth_page import ARMS, growth_page
from titan_motif.experiments.job import CellOptions, read_cell_job, run_and_show, train
from titan_motif.experiments.page import Page
from titan_motif.experiments.records import read_cell_run
from titan_motif.growth.mapping import carried_lam_init
from titan_motif.model import Motif2Model, Motif2ModelArgs
from titan_motif.network import model_args
from titan_motif.study.runner import Row

SNR_DB = 30.0
"""Of the noise that lets copies part."""
SMALL_SEED = 1000
"""Added to a cell's seed for the small model, which reads the corpus in an order of its own."""
SHAPE = ("dim", "n_layers", "n_heads", "hidden_dim", "grouped_ratio")
"""What growth changes here."""


def small_of(large: Motif2ModelArgs) -> Motif2ModelArgs:
    """Return the network that is grown: half as wide and deep, one signal head for each noise head.

    So were the report's: twice the width, four signal heads for each that was there, and depth.
    """
    return dataclasses.replace(
        large,
        dim=large.dim // 2,
        n_layers=large.n_layers // 2,
        n_heads=2 * large.num_groups,
        hidden_dim=large.hidden_dim // 2,
        grouped_ratio=1,
    )


def cost_of(args: Motif2ModelArgs, seq_len: int) -> tuple[int, int]:
    """Return a network's parameters, and floating-point operations to train on a token."""
    with torch.device("meta"):
        return args.get_nparams_and_flops(Motif2Model(args), seq_len)


class Growth:
    """The experiment `growth`."""

    name = "growth"
    seeds_of: ClassVar = dict.fromkeys(ARMS, 3)

    def __init__(self, options: CellOptions) -> None:
        self.is_quick, self.devices = options.is_quick, options.devices
        self.base = base = read_cell_job(self.name, options)
        self.large = model_args(base.job)
        self.small = small_of(self.large)
        if len(base.job.curriculum.phases) != 1:
            raise ValueError(f"{base.config}: the experiment needs one phase in its curriculum")
        self.phase = base.job.curriculum.phases[0]
        self.lam_init = carried_lam_init(self.small, self.large)

    @cached_property
    def costs(self) -> dict[str, tuple[int, int]]:
        """Parameters and operations a token of both networks."""
        length = self.phase.seq_len
        return {"small": cost_of(self.small, length), "large": cost_of(self.large, length)}

    def tokens_of(self, arm: str) -> int:
        """Return the tokens that an arm's large network is trained on.

        `scratch_all` has as many more as the small network's training would have paid for.
        """
        tokens = self.base.job.curriculum.total_tokens
        batch = self.phase.global_batch_tokens
        tokens = max(round(tokens / batch), 1) * batch
        if arm != "scratch_all":
            return tokens
        share = self.costs["small"][1] / self.costs["large"][1]
        return tokens + round(tokens * share / batch) * batch

    def prepare(self) -> None:
        """Prepare the corpus, unless it is there."""
        self.manifest = prepare_builtin(self.base.data, self.large.vocab_size)

    def settings(self) -> dict[str, Any]:
        """Return what cells must have in common to stand in one table; after `prepare`."""
        return {
            "config_sha256": self.base.config_sha256,
            "data_sha256": files_sha256(self.manifest),
            "snr_db": SNR_DB,
            "small": self.small_overrides(0),
            "arms": {arm: self.overrides(Cell(arm, 0)) for arm in ARMS},
        }

    def small_overrides(self, seed: int) -> list[str]:
        """Return the settings of the small network's job."""
        return [
            *(f"--model.args.{name}={getattr(self.small, name)}" for name in SHAPE),
            f"--curriculum.total_tokens={self.tokens_of('grown')}",
            f"--debug.seed={seed + SMALL_SEED}",
        ]

    def overrides(self, cell: Cell) -> list[str]:
        """Return the settings of a cell's job, but for what it begins from.

        lambda's constants are the grown model's in all arms: the network is the same.
        """
        return [
            f"--model.args.lam_init={list(self.lam_init)}",
            f"--curriculum.total_tokens={self.tokens_of(cell.arm)}",
            f"--debug.seed={cell.seed}",
        ]

    def run(self, cell: Cell, folder: Path) -> Row:
        """Train a cell in a folder, of a grown one the small model beside it, and tell of it."""
        settings = [*self.base.settings, *self.overrides(cell)]
        before: Row = {}
        seconds = 0.0
        if cell.arm == "grown":
            small = folder.with_name(f"{folder.name}_small")
            seconds = train(
                [*self.base.settings, *self.small_overrides(cell.seed)], small, self.devices
            )
            step = step_to_begin_from(small / "checkpoint")
            grown = folder.with_name(f"{folder.name}_model")
            differences = self._grow(Path(step), grown, cell.seed)
            splits = [self.base.data / group / "validation" for group in GROUPS]
            equality = compare_on_text(
                Path(step),
                grown,
                splits,
                num_sequences=4 if self.is_quick else 64,
                length=self.phase.seq_len,
            )
            before = {"small": read_cell_run(small), "equality": equality, "grow": differences}
            settings += [f"--checkpoint.initial_load_path={grown}"]
            settings += ["--checkpoint.initial_load_in_hf", "--checkpoint.initial_load_model_only"]
        seconds += train(settings, folder, self.devices)
        return {
            "training_seconds": round(seconds, 1),
            "flops_per_token": {name: flops for name, (_, flops) in self.costs.items()},
            **read_cell_run(folder),
            **before,
        }

    def _grow(self, step: Path, to: Path, seed: int) -> dict[str, Any]:
        """Grow the small model by `titan-motif grow`, and return what that measured."""
        for folder in (to, to.with_name(f"{to.name}.growing"), to.with_name(f"{to.name}.wrong")):
            shutil.rmtree(folder, ignore_errors=True)
        to.with_name(f"{to.name}.growing.json").unlink(missing_ok=True)
        figures = to.with_name(f"{to.name}.json")
        command = [sys.executable, "-m", "titan_motif.cli", "grow", "--from", str(step)]
        command += ["--to", str(to), "--config", str(self.base.config), "--json", str(figures)]
        command += ["--snr-db", str(SNR_DB), "--seed", str(seed)]
        run_and_show(command, self.devices.environment, "growing")
        return read_json(figures, MAX_RECORD_BYTES, is_record=True)["differences"]

    def tell(self, row: Row) -> str:
        """Return a finished cell in a line."""
        told = [f"validation loss {row['validation_loss']:.4f}"]
        if "equality" in row:
            found = row["equality"]["float64"]
            told += [
                f"grown at {found['loss_after']:.4f}",
                f"logits apart by {found['largest_difference']:.1e} in float64",
            ]
        return ", ".join(told)

    def page(self, command: str) -> Page:
        """Return the frame of the page; after `prepare`."""
        return growth_page(
            command=command,
            base=self.base,
            networks={"small": self.small, "large": self.large},
            costs=self.costs,
            tokens={arm: self.tokens_of(arm) for arm in ARMS},
            manifest=self.manifest,
            snr_db=SNR_DB,
        )
