"""Which layouts of ranks can train a model: each rule gives the key and what is wrong with it."""

from collections.abc import Iterator

from torchtitan.config import JobConfig

from titan_motif.config_keys import Finding
from titan_motif.model.args import Motif2ModelArgs

REFUSED_DEGREES = {
    "pipeline_parallel_degree": (
        "torchtitan 0.2.2 does not divide a pipeline's gradients by the tokens that count; "
        "use data_parallel_shard_degree and tensor_parallel_degree"
    ),
    "context_parallel_degree": (
        "differential attention has no ring form here; "
        "use tensor_parallel_degree, which also cuts the sequence between blocks"
    ),
    "expert_parallel_degree": "Motif-2 has no experts; use data_parallel_shard_degree",
}
REFUSED_SWITCHES = {
    "disable_loss_parallel": "whole float32 logits on every rank would not fit; leave it false",
    "enable_async_tensor_parallel": "it was not verified with this model; leave it false",
}


def check_layout(config: JobConfig, args: Motif2ModelArgs, world_size: int) -> Iterator[Finding]:
    """Yield every finding about the parallel degrees, the most basic first."""
    findings = list(_degrees(config, world_size))
    if not findings:
        findings = [*_tensor_parallel(config, args)]
        # Batches of phases are filled where ranks do not divide them.
        if not config.curriculum.has_phases:
            findings += _batch(config, world_size)
    yield from findings


def data_parallel_ranks(config: JobConfig, world_size: int) -> int:
    """Return how many of so many processes read data of their own: tensor parallelism's share."""
    # A job is settled before a degree below 1 is refused.
    return world_size // max(config.parallelism.tensor_parallel_degree, 1)


def _degrees(config: JobConfig, world_size: int) -> Iterator[Finding]:
    parallelism = config.parallelism
    for name, reason in REFUSED_DEGREES.items():
        degree = getattr(parallelism, name)
        if degree != 1:
            yield f"parallelism.{name}", f"is {degree}; only 1 is allowed: {reason}"
    for name, reason in REFUSED_SWITCHES.items():
        if getattr(parallelism, name):
            yield f"parallelism.{name}", f"is true; {reason}"
    replicate = parallelism.data_parallel_replicate_degree
    shard = parallelism.data_parallel_shard_degree
    tensor = parallelism.tensor_parallel_degree
    for name, degree in (
        ("data_parallel_replicate_degree", replicate),
        ("tensor_parallel_degree", tensor),
    ):
        if degree < 1:
            yield f"parallelism.{name}", f"is {degree}; at least 1 is needed"
            return
    if shard != -1 and shard < 1:
        yield (
            "parallelism.data_parallel_shard_degree",
            f"is {shard}; -1 (all that is left) or at least 1 is needed",
        )
    elif world_size % (replicate * tensor):
        name = "tensor_parallel_degree" if tensor > 1 else "data_parallel_replicate_degree"
        yield (
            f"parallelism.{name}",
            f"gives {replicate} replicas x {tensor} tensor-parallel ranks; their product must "
            f"divide the {world_size} processes",
        )
    elif shard not in (-1, world_size // (replicate * tensor)):
        needed = world_size // (replicate * tensor)
        yield (
            "parallelism.data_parallel_shard_degree",
            f"is {shard}; {world_size} processes with {replicate} replicas x {tensor} "
            f"tensor-parallel ranks allow -1 or {needed}",
        )
    elif replicate > 1 and world_size == replicate * tensor:
        yield (
            "parallelism.data_parallel_replicate_degree",
            f"is {replicate} with nothing sharded: replicas alone are not supported, since "
            "torchtitan 0.2.2 halves their gradients; use data_parallel_shard_degree, or both",
        )


def _tensor_parallel(config: JobConfig, args: Motif2ModelArgs) -> Iterator[Finding]:
    degree = config.parallelism.tensor_parallel_degree
    if degree == 1:
        return
    key = "parallelism.tensor_parallel_degree"
    for number, what in _what_a_rank_shares(args):
        if number % degree:
            allowed = ", ".join(map(str, allowed_tensor_degrees(args)))
            yield key, f"is {degree}; {number} {what} cannot be cut by it: one of {allowed} can"
            return
    lengths = {
        f"{name}.seq_len": getattr(config, name).seq_len for name in ("training", "validation")
    }
    if config.curriculum.has_phases:
        for i, phase in enumerate(config.curriculum.phases, start=1):
            lengths[f"curriculum.phases.{i}.seq_len"] = phase.seq_len
    for name, length in lengths.items():
        if length % degree:
            yield name, f"is {length}; a multiple of {key} ({degree}) is needed"


def allowed_tensor_degrees(args: Motif2ModelArgs) -> list[int]:
    """Return the tensor-parallel degrees that divide everything a rank gets a share of."""
    numbers = [number for number, _ in _what_a_rank_shares(args)]
    return [d for d in range(1, min(numbers) + 1) if all(number % d == 0 for number in numbers)]


def _what_a_rank_shares(args: Motif2ModelArgs) -> list[tuple[int, str]]:
    if args.grouped_ratio:
        heads = [
            (args.num_groups, "groups of heads"),
            (args.n_kv_heads // 2, "pairs of key heads"),
        ]
    else:
        heads = [(args.n_heads, "query heads"), (args.n_kv_heads, "key heads")]
    return [
        *heads,
        (args.hidden_dim, "columns of the feed-forward layer"),
        (args.vocab_size, "entries of the vocabulary"),
    ]


def _batch(config: JobConfig, world_size: int) -> Iterator[Finding]:
    ranks = data_parallel_ranks(config, world_size)
    local, size = config.training.local_batch_size, config.training.global_batch_size
    if local == -1 == size:
        yield "training.local_batch_size", "is -1 and global_batch_size too; give one of them"
    elif local == -1 and size % ranks:
        fewer = max(n for n in range(1, ranks) if size % n == 0)
        yield (
            "training.global_batch_size",
            f"is {size}; {ranks} data-parallel ranks cannot share it evenly (local_batch_size "
            f"is -1): {fewer} can, or {ranks} can share {ranks * (size // ranks + 1)}",
        )
    elif local != -1 and size != -1 and size % (local * ranks):
        yield (
            "training.global_batch_size",
            f"is {size}; a multiple of local_batch_size x data-parallel ranks "
            f"({local} x {ranks} = {local * ranks}) is needed",
        )
