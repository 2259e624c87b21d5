"""The small model that the tests of ranks share, parallelised on every layout of ranks.

Found by name in the test process and in the pool's workers: both have this folder on their path.
"""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = {
    "dim": 40,
    "n_layers": 2,
    "n_heads": 20,
    "n_kv_heads": 8,
    "head_dim": 4,
    "hidden_dim": 48,
    "grouped_ratio": 4,
    "vocab_size": 304,  # two blocks of rows, so that a shard's edge falls into a block
    "max_seq_len": 64,
    "init_std": 0.1,
    "loss_chunk_tokens": 20,  # of 192 on one rank
    "z_loss": 1e-2,
}
FLOAT8 = {"dim": 64, "hidden_dim": 128, "head_dim": 16}
"""Sizes that products in FP8 have, whole or cut in two."""
NUM_SEQUENCES, SEQ_LEN = 12, 16

# ranks, and the degrees of replicas, shards, tensor parallelism
LAYOUTS = {
    "one": (1, 1, 1, 1),
    "fsdp2": (2, 1, 2, 1),
    "fsdp3": (3, 1, 3, 1),
    "hsdp2x2": (4, 2, 2, 1),
    "tp2": (2, 1, 1, 2),
    "tp4": (4, 1, 1, 4),
    "fsdp2_tp2": (4, 1, 2, 2),
}


def all_tokens() -> torch.Tensor:
    # lambda's gradient is a sum of terms that may cancel; with this seed none does, and one
    # rank's float32 gradients are within 3e-6 of float64's (asserted in `one_rank`).
    generator = torch.Generator().manual_seed(1)
    size = (NUM_SEQUENCES, SEQ_LEN + 1)
    return torch.randint(0, SMALL["vocab_size"], size, generator=generator)


def build(
    layout: str,
    recompute: str = "none",
    backend: str | None = None,
    float8: str | None = None,
    gathers_in_float8: bool = False,
    precision: tuple[str, str] = ("float32", "float32"),
    **arguments,
):
    """A model parallelised as a job would have it, on all ranks of the process group.

    `float8` is a recipe, and `precision` what products and reductions are in.
    """
    from torchtitan.distributed import ParallelDims

    from titan_motif.components.float8 import convert_to_float8
    from titan_motif.config import JobConfig
    from titan_motif.model import Motif2Model, Motif2ModelArgs
    from titan_motif.parallelize import parallelize

    world_size, replicate, shard, tensor = LAYOUTS[layout]
    dims = ParallelDims(
        dp_replicate=replicate,
        dp_shard=shard,
        tp=tensor,
        **{"cp": 1, "pp": 1, "ep": 1, "etp": 1},
        world_size=world_size,
    )
    config = JobConfig()
    config.training.mixed_precision_param, config.training.mixed_precision_reduce = precision
    config.parallelism.data_parallel_replicate_degree = replicate
    config.parallelism.data_parallel_shard_degree = shard
    config.parallelism.tensor_parallel_degree = tensor
    option = "op" if recompute == "selective" else "products"
    config.activation_checkpoint.mode = "selective" if recompute == "products" else recompute
    config.activation_checkpoint.selective_ac_option = option
    config.compile.enable = backend is not None
    config.compile.backend = backend or "inductor"
    with torch.device("meta"):
        model = Motif2Model(Motif2ModelArgs(**SMALL | arguments))
    if float8 is not None:
        convert_to_float8(model, float8, emulate=True, gathers_in_float8=gathers_in_float8)
    parallelize(model, dims, config)
    model.to_empty(device="cpu")
    model.init_weights()
    return model, dims


def named(model, what):
    """Gather what(parameter) of every parameter, under the names of the plain model."""
    from titan_motif.model.initialization import plain_name

    return {plain_name(n): what(p) for n, p in model.named_parameters()}


class CountCollectives(TorchDispatchMode):
    """Counts the collectives that are called inside, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.namespace in ("c10d", "_c10d_functional"):
            self.found[function._opname] += 1
        return function(*arguments, **(keywords or {}))
