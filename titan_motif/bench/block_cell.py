"""Forward and backward pass of one block by itself, compiled: what FP8 does to it.

    python -m titan_motif.bench.block ROW.json --flavor 12_7b --batch 4 --seq-len 4096
        --recipe rowwise_with_gw_hp

The block is the model's, converted and compiled as the trainer does, with parameters in bfloat16
(float32 on a CPU) and random inputs. FSDP, optimizer, embedding and loss are left out.
"""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from titan_motif.bench.measure import measure
from titan_motif.components.float8 import convert_to_float8
from titan_motif.model import FLAVORS, Motif2Model, Motif2ModelArgs
from titan_motif.model.attention import rotation_at
from titan_motif.model.scalars import Scalars
from titan_motif.study.runner import Row, write_row_of

SMALL_VOCABULARY = 16
"""The block does not see it, and a large one would take memory."""
BUDGET_MS = 2000.0
"""Of the timed calls."""


def measure_block(
    args: Motif2ModelArgs, batch: int, seq_len: int, recipe: str, emulate: bool
) -> Row:
    """Return the median of a block's forward and backward pass; an empty recipe is bf16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    args = replace(args, n_layers=1, vocab_size=SMALL_VOCABULARY, lam_init=None)
    with torch.device(device):
        model = Motif2Model(args)
    model.init_weights()
    if recipe:
        convert_to_float8(model, recipe, emulate=emulate)
    block = model.layers["0"].to(dtype)
    scalars = Scalars(*(x.detach().requires_grad_() for x in model.scalars().of_layer(0)))
    generator = torch.Generator(device).manual_seed(0)

    def draw() -> Tensor:
        shape = batch, seq_len, args.dim
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    x, gradient = draw().requires_grad_(), draw()
    positions = torch.arange(seq_len, device=device)[None]
    rotation = rotation_at(positions, args.head_dim, args.rope_theta, torch.float32)
    wanted = [x, *block.parameters(), *scalars]
    compiled = torch.compile(block, fullgraph=True, dynamic=False)

    def both_passes() -> None:
        out, _ = compiled(x, rotation, scalars, None, None)
        torch.autograd.grad(out, wanted, gradient, allow_unused=True)

    milliseconds = measure(both_passes, device, BUDGET_MS).ms
    _, flops_per_token = args.get_nparams_and_flops(model, seq_len)
    flops = flops_per_token * batch * seq_len
    return {"block_ms": milliseconds, "tflops": flops / milliseconds / 1e9}


def main(argv: Sequence[str]) -> int:
    """Measure what a command line says, write its row, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m titan_motif.bench.block")
    parser.add_argument("row", type=Path)
    parser.add_argument("--flavor", choices=FLAVORS, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--recipe", default="")
    parser.add_argument("--emulate", action="store_true")
    options = parser.parse_args(argv)
    return write_row_of(
        options.row,
        lambda: measure_block(
            FLAVORS[options.flavor],
            options.batch,
            options.seq_len,
            options.recipe,
            options.emulate,
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
