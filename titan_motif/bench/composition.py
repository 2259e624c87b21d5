"""A step of a large job, put together from what one GPU can measure of it.

One GPU that holds all matrices would orthogonalise all of them. A rank of a large job does so with
its own alone, and its step takes

    T / (tokens a second of forward and backward pass) + rest + AdamW's part + Muon's part

for T tokens a GPU. The first term and the rest (gradient clipping, QK-clip, data; all of it on the
whole network) are those of a measured job, the other two those of rank 0 of N simulated ones, with
a network that is never waited for:

    python -m titan_motif.bench.composition ROW.json --ranks 8 -- --model.flavor=12_7b

What stands behind '--' are the settings of the job whose network it is.
"""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from titan_motif.bench.measure import measure
from titan_motif.bench.muon import (
    NO_NETWORK,
    measure_step,
    random_exchange,
    shapes_by_algorithm,
)
from titan_motif.config_loading import load_config
from titan_motif.model import Motif2ModelArgs
from titan_motif.network import model_args
from titan_motif.simulation import simulated_ranks
from titan_motif.study.machine import choose_device
from titan_motif.study.runner import Row, split_at_job, write_row_of


@dataclass(frozen=True)
class Composition:
    """The parts of a step, in milliseconds."""

    tokens: int
    """Of one GPU."""
    forward_backward_ms: float
    rest_ms: float
    adamw_ms: float
    muon_ms: float

    @property
    def step_ms(self) -> float:
        """Of the whole step, milliseconds."""
        return self.forward_backward_ms + self.rest_ms + self.adamw_ms + self.muon_ms

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU."""
        return 1000 * self.tokens / self.step_ms

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens in {self.step_ms:.1f} ms = forward and backward "
            f"{self.forward_backward_ms:.1f} + clipping and the rest {self.rest_ms:.1f} + AdamW "
            f"{self.adamw_ms:.1f} + Muon {self.muon_ms:.1f}"
        )


def compose(row: Row, tokens: int, adamw_ms: float, muon_ms: float) -> Composition:
    """Return the step of `tokens` tokens of a job that was measured at another batch."""
    return Composition(
        tokens,
        row["forward_backward_ms"] * tokens / row["tokens_per_step"],
        max(row["step_ms"] - row["forward_backward_ms"] - row["update_ms"], 0.0),
        adamw_ms,
        muon_ms,
    )


def measure_optimizers(args: Motif2ModelArgs, ranks: int) -> Row:
    """Return how long Muon and AdamW take on rank 0 of a job that shards a network over ranks."""
    device = choose_device()
    shapes = shapes_by_algorithm(args)
    with simulated_ranks(ranks), random_exchange():
        muon = measure_step(shapes["muon"], "parallel", None, device, seed=0, rates=NO_NETWORK)
    parameters = []
    for first, *others in shapes["adamw"]:
        rows = -(-first // ranks)  # as FSDP cuts them
        parameters.append(torch.zeros(rows, *others, device=device))
        parameters[-1].grad = torch.ones_like(parameters[-1])
    adamw = torch.optim.AdamW(parameters, fused=True)
    return {"ranks": ranks, "muon_ms": muon.ms, "adamw_ms": measure(adamw.step, device).ms}


def main(argv: Sequence[str]) -> int:
    """Measure what a command line says, write its row, and return the exit code."""
    own, job = split_at_job(argv)
    parser = argparse.ArgumentParser(prog="python -m titan_motif.bench.composition")
    parser.add_argument("row", type=Path)
    parser.add_argument("--ranks", type=int, required=True)
    options = parser.parse_args(own)

    def measure_job() -> Row:
        config = load_config(job, world_size=1, runs_here=False)
        return measure_optimizers(model_args(config), options.ranks)

    return write_row_of(options.row, measure_job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
