"""What the cells of a study differ in, as settings of a job."""

from itertools import product
from typing import NamedTuple

from titan_motif.components.float8 import FLOAT8
from titan_motif.config import Float8Linear

AXES: dict[str, tuple[str, ...]] = {
    "modes": ("eager", "compile"),
    "kernels": ("torch", "triton"),
    "precision": ("bf16", "rowwise_with_gw_hp", "rowwise", "tensorwise"),
    "checkpointing": ("none", "products", "op", "full"),
    "attention": ("sdpa", "triton"),
}
"""Axis -> what it may be. A cell's name has one of each, in this order."""


class Cell(NamedTuple):
    """One configuration of a study."""

    mode: str
    kernels: str
    precision: str
    checkpointing: str
    attention: str

    def __str__(self) -> str:
        return "/".join(self)

    def resets(self) -> list[str]:
        """Return settings that undo a job's for FP8, which one without FP8 must not have."""
        return without_float8() if self.precision == "bf16" else []

    def overrides(self, emulate: bool) -> list[str]:
        """Return the job's settings that make it; `emulate` rounds as FP8 does on any device."""
        is_fp8 = self.precision != "bf16"
        converter = FLOAT8 if is_fp8 else ""
        settings = [
            f"--compile.enable={'true' if self.mode == 'compile' else 'false'}",
            f"--model.kernels={self.kernels}",
            f"--model.attention={self.attention}",
            f"--model.converters={converter}",
        ]
        if is_fp8:
            settings.append(f"--{FLOAT8}.recipe_name={self.precision}")
        if is_fp8 and emulate:
            settings.append(f"--{FLOAT8}.emulate=true")
        if self.checkpointing in ("none", "full"):
            return [*settings, f"--activation_checkpoint.mode={self.checkpointing}"]
        option = f"--activation_checkpoint.selective_ac_option={self.checkpointing}"
        return [*settings, "--activation_checkpoint.mode=selective", option]


def without_float8() -> list[str]:
    """Return settings that undo whatever a job sets of FP8."""
    unset = {
        name: ",".join(value) if isinstance(value, list) else str(value)
        for name, value in vars(Float8Linear()).items()
    }
    return [f"--{FLOAT8}.{name}={text}" for name, text in unset.items()]


def cells_of(axes: dict[str, str], cells: str) -> list[Cell]:
    """Return the named cells, or the product of the axes; both are texts with commas.

    Raises: ValueError, one line, for a word that no axis has, and for axes beside cells
    """
    if not cells:
        return [Cell(*words) for words in product(*(_words(*axis) for axis in axes.items()))]
    changed = [name for name, words in axes.items() if words != ",".join(AXES[name])]
    if changed:
        raise ValueError(f"--{changed[0]} and --cells are given; --cells names every axis itself")
    return list(dict.fromkeys(map(_cell, cells.split(","))))


def _words(axis: str, text: str) -> list[str]:
    words = list(dict.fromkeys(text.split(",")))
    for word in words:
        if word not in AXES[axis]:
            raise ValueError(f"--{axis} has {word!r}; of {', '.join(AXES[axis])} any are allowed")
    return words


def _cell(name: str) -> Cell:
    words = name.split("/")
    if len(words) != len(AXES):
        raise ValueError(
            f"--cells has {name!r}; {'/'.join(AXES)} is needed, such as "
            "compile/triton/bf16/none/triton"
        )
    for word, (axis, allowed) in zip(words, AXES.items(), strict=True):
        if word not in allowed:
            raise ValueError(
                f"--cells has {name!r}; {word!r} is no {axis}: {', '.join(allowed)} are allowed"
            )
    return Cell(*words)
