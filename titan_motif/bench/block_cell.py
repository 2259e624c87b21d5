"""Forward and backward pass of one block by itself, compiled.

    python -m titan_motif.bench.block_cell ROW.json --flavor 12_7b --batch 4 --seq-len 4096
        --variant fp8 --recipe rowwise_with_gw_hp

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

from titan_motif.bench.block_parts import measure_parts
from titan_motif.bench.measure import measure
from titan_motif.components.float8 import convert_to_float8
from titan_motif.model import FLAVORS, Motif2Model, Motif2ModelArgs
from titan_motif.model.attention import rotation_at
from titan_motif.model.scalars import Scalars
from titan_motif.run_records import describe_environment
from titan_motif.study.machine import choose_device
from titan_motif.study.runner import Row, write_row_of

VARIANTS = ("plain-bf16", "bf16", "fp8")
"""The plain one has no kernel of ours."""
SMALL_VOCABULARY = 16
"""The block does not see it, and a large one would take memory."""
BUDGET_MS = 2000.0
"""Of the timed calls."""


def measure_block(
    args: Motif2ModelArgs, batch: int, seq_len: int, variant: str, recipe: str, emulate: bool
) -> Row:
    """Return the median of a block's forward and backward pass, and what its time goes into."""
    device = choose_device()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    args = replace(args, n_layers=1, vocab_size=SMALL_VOCABULARY, lam_init=None)
    if variant == "plain-bf16":
        args = replace(args, kernels="torch", attention="sdpa")
    with torch.device(device):
        model = Motif2Model(args)
    model.init_weights()
    if variant == "fp8":
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
    return {
        "block_ms": milliseconds,
        "tflops": flops / milliseconds / 1e9,
        "parts_ms": measure_parts(both_passes, device),
        "device": describe_environment(world_size=1)["device_name"],
    }


def main(argv: Sequence[str]) -> int:
    """Measure what a command line says, write its row, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m titan_motif.bench.block_cell")
    parser.add_argument("row", type=Path)
    parser.add_argument("--flavor", choices=FLAVORS, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--emulate", action="store_true")
    options = parser.parse_args(argv)
    return write_row_of(
        options.row,
        lambda: measure_block(
            FLAVORS[options.flavor],
            options.batch,
            options.seq_len,
            options.variant,
            options.recipe,
            options.emulate,
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
