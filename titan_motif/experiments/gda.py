"""Standard attention against GDA at several ratios, at equal parameters and equal tokens."""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from titan_motif.experiments.cells import Cell
from titan_motif.experiments.data import DataSettings, prepare_data
from titan_motif.experiments.gda_page import gda_page
from titan_motif.experiments.job import CellOptions, read_cell_job, train
from titan_motif.experiments.page import Page
from titan_motif.experiments.questions import ask
from titan_motif.experiments.records import read_by_layer, read_cell_run
from titan_motif.experiments.tasks import TASKS
from titan_motif.model import Motif2Model, Motif2ModelArgs
from titan_motif.network import model_args
from titan_motif.study.runner import Row


class Arm(NamedTuple):
    """Attention of an arm."""

    ratio: int
    """Signal heads for each noise head; 0 is standard attention."""
    num_key_heads: int
    seeds: int
    """Unless others are asked for."""


ARMS = {
    "standard": Arm(0, 6, 3),
    "ratio4": Arm(4, 6, 3),  # the report's
    "ratio1": Arm(1, 6, 1),
    "ratio3": Arm(3, 8, 1),  # whose 8 groups cannot share 3 pairs of key heads
    "ratio8": Arm(8, 6, 1),
}
LAYER_CURVES = ("attention_lambda", "attention_noise_over_signal", "attention_max_logit")

DATA = DataSettings(
    text_megabytes=200,
    has_packages=True,
    task_documents=130_000,
    vocab_size=8192,
    tokenizer_megabytes=30,
)
QUICK_DATA = DataSettings(
    text_megabytes=1,
    has_packages=False,
    task_documents=400,
    vocab_size=1024,
    tokenizer_megabytes=1,
)


def shape_of(standard: Motif2ModelArgs, arm: Arm) -> dict[str, int]:
    """Return an arm's changes of the standard arm's shape, at equal sizes of all matrices.

    Noise heads need queries, and values of twice the width a wider output projection: the
    feed-forward layer is so much narrower.
    """
    signal_heads, width = standard.n_heads, standard.head_dim
    num_heads = signal_heads + (signal_heads // arm.ratio if arm.ratio else 0)
    value_width = 2 * width if arm.ratio else width

    def rows(queries: int, keys: int, outputs: int) -> int:
        """Return the rows of dim weights of a block's attention."""
        return queries * width + 2 * keys * width + outputs

    here = rows(num_heads, arm.num_key_heads, signal_heads * value_width)
    there = rows(signal_heads, standard.n_kv_heads, signal_heads * width)
    narrower, rest = divmod(here - there, 3)
    assert rest == 0, "three matrices of the feed-forward layer take what attention has more"
    return {
        "n_heads": num_heads,
        "n_kv_heads": arm.num_key_heads,
        "grouped_ratio": arm.ratio,
        "hidden_dim": standard.hidden_dim - narrower,
    }


class Gda:
    """The experiment `gda`."""

    name = "gda"
    seeds_of: ClassVar = {name: arm.seeds for name, arm in ARMS.items()}

    def __init__(self, options: CellOptions) -> None:
        self.devices = options.devices
        self.data_settings = QUICK_DATA if options.is_quick else DATA
        self.num_asked = 20 if options.is_quick else 1000
        self.base = read_cell_job(self.name, options)
        self.job, self.data = self.base.job, self.base.data
        self.standard = model_args(self.job)
        self.tokens = self.job.curriculum.total_tokens

    def prepare(self) -> None:
        """Prepare the data, unless they are there."""
        self.record = prepare_data(self.data, self.data_settings)

    def settings(self) -> dict[str, Any]:
        """Return what cells must have in common to stand in one table; after `prepare`."""
        data = {name: source["files"] for name, source in self.record["sources"].items()}
        return {
            "config_sha256": self.base.config_sha256,
            "tokens": self.tokens,
            "asked": self.num_asked,
            "data": self.record["settings"],
            "texts_sha256": self.record["texts_sha256"],
            "data_sha256": hashlib.sha256(repr(sorted(data.items())).encode()).hexdigest(),
            "arms": {name: self.overrides(Cell(name, 0)) for name in ARMS},
        }

    def overrides(self, cell: Cell) -> list[str]:
        """Return the settings in which a cell's job differs from the file."""
        shape = shape_of(self.standard, ARMS[cell.arm])
        return [
            *(f"--model.args.{name}={value}" for name, value in shape.items()),
            f"--debug.seed={cell.seed}",
        ]

    def run(self, cell: Cell, folder: Path) -> Row:
        """Train a cell in a folder, ask it, and return what is known of it."""
        seconds = train([*self.base.settings, *self.overrides(cell)], folder, self.devices)
        asked = ask(folder, self.data / "tokenizer", self.num_asked, self.devices.type)
        return {
            "training_seconds": round(seconds, 1),
            "parameters": self.parameters(cell.arm),
            **read_cell_run(folder),
            "accuracy": {
                task: {difficulty: found.num_right for difficulty, found in by_difficulty.items()}
                for task, by_difficulty in asked.items()
            },
            "by_layer": read_by_layer(folder, LAYER_CURVES),
        }

    def tell(self, row: Row) -> str:
        """Return a finished cell in a line."""
        told = [f"{row['tokens_per_second']:,.0f} tokens/s"]
        told += [f"{name} loss {loss:.4f}" for name, loss in row["validation_losses"].items()]
        for task in TASKS:
            right = (f"{100 * n / self.num_asked:.0f}" for n in row["accuracy"][task.name].values())
            told.append(f"{task.name} {'/'.join(right)}%")
        return ", ".join(told)

    def page(self, command: str) -> Page:
        """Return the frame of the page; after `prepare`."""
        return gda_page(
            command=command,
            job=self.job,
            arms={name: shape_of(self.standard, arm) for name, arm in ARMS.items()},
            parameters={name: self.parameters(name) for name in ARMS},
            record=self.record,
            settings=self.settings(),
        )

    def parameters(self, arm: str) -> dict[str, int]:
        """Return an arm's parameters, whole and beside embedding and output."""
        args = Motif2ModelArgs(**asdict(self.standard) | shape_of(self.standard, ARMS[arm]))
        with torch.device("meta"):
            total = sum(parameter.numel() for parameter in Motif2Model(args).parameters())
        return {"total": total, "blocks": total - 2 * args.vocab_size * args.dim}
