"""Initial weights that do not depend on how many ranks hold them.

DTensor's own random operators repeat on CPU: with one seed, the shards of ranks 0 and 1 are equal,
so 1, 2 and 3 ranks begin with different models. Here every block of rows of every parameter has
its own generator, keyed by (seed, name, block), and a rank draws the blocks that it holds, with a
thread for each core that it has. Drawing happens on CPU, so that GPU runs begin with the same bits.
"""

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from titan_motif.model.args import Motif2ModelArgs

ROWS_PER_BLOCK = 256
"""Rows drawn from one generator; changing it changes every model's initial weights."""

LAMBDA_STD = 0.1  # of the released code


@torch.no_grad()
def initialize(model: nn.Module, args: Motif2ModelArgs) -> None:
    """Fill every parameter of the model in place; parameters may be sharded DTensors."""
    with ThreadPoolExecutor(_num_threads()) as threads:
        for wrapped_name, parameter in model.named_parameters():
            name = plain_name(wrapped_name)
            if name.endswith("poly_weight"):
                parameter.fill_(1 / 3)
            elif name.endswith("poly_bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                std = _standard_deviation(name, args)
                _fill_normal(parameter, name, args.init_seed, std, threads)


def _num_threads() -> int:
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)


def plain_name(name: str) -> str:
    """Return a parameter's name without what torch.compile and checkpointing put around modules."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def _standard_deviation(name: str, args: Motif2ModelArgs) -> float:
    # ASSUMPTION: the report does not state its initial weights. 0.02 is common at its widths (the
    # narrow debug model wants more), and GPT-2 divides what writes into the residual stream.
    if ".lambda_" in name:
        return LAMBDA_STD
    writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    return args.init_std / math.sqrt(2 * args.n_layers) if writes_residual else args.init_std


def _fill_normal(
    parameter: Tensor, name: str, seed: int, std: float, threads: ThreadPoolExecutor
) -> None:
    """Fill a parameter with normal values that depend on (seed, name, index) alone."""
    if isinstance(parameter, DTensor):
        local = parameter.to_local()
        _, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
    else:
        local, offset = parameter, (0,) * parameter.ndim
    if local.numel() == 0:
        return
    region = [slice(o, o + n) for o, n in zip(offset, local.shape, strict=True)]
    rows, columns = region[0], region[1:]

    @torch.no_grad()  # a thread has its own
    def fill(block: int) -> None:
        first, last = block * ROWS_PER_BLOCK, min((block + 1) * ROWS_PER_BLOCK, len(parameter))
        drawn = torch.empty(last - first, *parameter.shape[1:], dtype=torch.float32)
        drawn.normal_(0.0, std, generator=_generator(seed, name, block))
        begin, end = max(first, rows.start), min(last, rows.stop)
        part = drawn[(slice(begin - first, end - first), *columns)]
        local[begin - rows.start : end - rows.start] = part.to(local)

    blocks = range(rows.start // ROWS_PER_BLOCK, (rows.stop - 1) // ROWS_PER_BLOCK + 1)
    for _ in threads.map(fill, blocks):
        pass  # what a thread has raised is raised here


def _generator(seed: int, name: str, block: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}/{block}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
