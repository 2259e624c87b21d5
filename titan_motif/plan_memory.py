"""The memory part of `titan-motif plan`: from a job's settings to figures, and to a table."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from torch.distributed.tensor import DTensor
from torchtitan.config import TORCH_DTYPE_MAP

from titan_motif.activations import BlockForm, Kept
from titan_motif.components.curriculum.micro_batches import Share
from titan_motif.components.float8 import FLOAT8
from titan_motif.components.muon.method import choose_method
from titan_motif.components.muon.plan import Plan
from titan_motif.config import JobConfig, Muon
from titan_motif.config_files import ConfigError, read_files
from titan_motif.kernels import fastest_attention_on
from titan_motif.layout import data_parallel_ranks
from titan_motif.memory import Group, Groups, Job, Parts, largest_batch, moments, peak
from titan_motif.network import model_args
from titan_motif.recomputation import compiles_model

GpuName = Literal["H100-80GB", "H200", "A100-80GB", "B200"]


class Gpu(NamedTuple):
    """A card."""

    capacity_bytes: int
    """As its driver reports it."""
    compute_capability: tuple[int, int]


GPUS: dict[GpuName, Gpu] = {
    "H100-80GB": Gpu(int(79.18 * 2**30), (9, 0)),
    "H200": Gpu(int(139.8 * 2**30), (9, 0)),
    "A100-80GB": Gpu(int(79.15 * 2**30), (8, 0)),
    "B200": Gpu(int(178.4 * 2**30), (10, 0)),
}

RESERVE = 0.05
"""Of a card, for what is no tensor: CUDA's context, NCCL's buffers, fragmentation."""


class MicroBatch(NamedTuple):
    """What a data-parallel rank takes at a time."""

    tokens: int
    """The most, over all phases of a curriculum."""
    seq_len: int
    """Of the longest sequences."""
    is_one_of_many: bool
    """Whether a step has several, at any time."""


@dataclass(frozen=True)
class Planned:
    """What the rest of the plan knows of a job already."""

    parameters: Mapping[str, DTensor]
    """Sharded, by their plain names."""
    muon: frozenset[str] = frozenset()
    """Names of those that Muon updates; AdamW has the others."""
    exchange_bytes: int = 0
    """Of Muon's step."""


def words_for(path: Path, replicas: int | None = None) -> list[str]:
    """Return the command line of a job: what is 'auto' is as on a GPU, wherever this runs.

    Args: replicas: in place of the file's
    """
    words = ["--job.config_file", str(path)]
    if replicas is not None:
        words += ["--parallelism.data_parallel_replicate_degree", str(replicas)]
    try:
        tables = [table for _, table in read_files(path)]
    except ConfigError:
        tables = []  # load_config will say so
    for section, key, on_gpu in (
        ("model", "kernels", "triton"),
        ("training", "mixed_precision_param", "bfloat16"),
    ):
        sections = [table.get(section, {}) for table in tables]
        written = [s[key] for s in sections if isinstance(s, dict) and key in s]
        if not written or written[-1] == "auto":
            words += [f"--{section}.{key}", on_gpu]
    return words


def plan_memory(config: JobConfig, gpus: int, gpu: GpuName, planned: Planned) -> dict[str, Any]:
    """Return the `memory` of the JSON; where it cannot be told, only the `reason` why."""
    reason = _why_unknown(config, gpu)
    if reason is not None:
        return {"gpu": gpu, "reason": reason}
    ranks = data_parallel_ranks(config, gpus)
    batch = micro_batch(config, ranks)
    job = job_of(config, ranks, gpu, planned, batch.is_one_of_many)
    capacity = GPUS[gpu].capacity_bytes
    limit = (1 - RESERVE) * capacity
    moment, parts = peak(job, batch.tokens)
    fits = parts.total <= limit
    return {
        **asdict(parts),
        "peak_bytes": parts.total,
        "moment": moment,
        "moments": {name: p.total for name, p in moments(job, batch.tokens).items()},
        "gpu": gpu,
        "capacity_bytes": capacity,
        "fits": fits,
        "micro_batch_tokens": batch.tokens,
        "seq_len": batch.seq_len,
        "largest_local_batch": largest_batch(job, batch.seq_len, limit),
        "what_would_fit": [] if fits else _what_would_fit(job, batch, limit),
    }


def micro_batch(config: JobConfig, ranks: int) -> MicroBatch:
    """Return the micro-batch of each of so many data-parallel ranks."""
    training = config.training
    if not config.curriculum.has_phases:
        sequences = training.local_batch_size
        if sequences == -1:
            sequences = -(-training.global_batch_size // ranks)
        many = training.global_batch_size > sequences * ranks
        return MicroBatch(sequences * training.seq_len, training.seq_len, many)
    plan = config.lr_scheduler.plan
    share = Share(0, ranks, config.curriculum.local_batch_tokens)
    ends = [i for begin, end in pairwise(plan.phase_steps) for i in (begin, end - 1)]
    steps = [plan.step(i) for i in ends]  # a phase's batch grows, or stays
    return MicroBatch(
        max(share.rows(step) * step.seq_len for step in steps),
        plan.longest_sequence,
        any(share.micro_batches(step) > 1 for step in steps),
    )


def _why_unknown(config: JobConfig, gpu: GpuName) -> str | None:
    """Return the setting whose memory no formula here tells, or None."""
    float8 = config.quantize.linear.float8
    in_float8 = FLOAT8 in config.model.converters
    uses_muon = config.optimizer.name == "ParallelMuon"
    for applies, reason in (
        (
            config.activation_checkpoint.mode == "memory_budget",
            "activation_checkpoint.mode is 'memory_budget', where the compiler decides",
        ),
        (
            config.training.enable_cpu_offload,
            "training.enable_cpu_offload is true, and parameters move",
        ),
        (
            config.model.kernels == "torch",
            "model.kernels is 'torch', whose norms keep much more than the Triton kernels",
        ),
        (
            config.training.mask_documents and _attention(config, gpu) == "sdpa",
            "training.mask_documents makes SDPA hold masks; 'triton' does not",
        ),
        (
            config.optimizer.implementation != "fused" and not uses_muon,
            f"optimizer.implementation is {config.optimizer.implementation!r}, not 'fused'",
        ),
        (in_float8 and float8.emulate, f"{FLOAT8}.emulate is true, which is for tests"),
        (
            in_float8 and GPUS[gpu].compute_capability < (8, 9),
            f"model.converters names {FLOAT8!r}, and {gpu} multiplies no FP8",
        ),
    ):
        if applies:
            return reason
    return None


def _attention(config: JobConfig, gpu: GpuName) -> Literal["triton", "sdpa"]:
    """Return the path that attention takes there."""
    args = model_args(config)
    if config.model.attention != "auto" or args.grouped_ratio == 0:
        return "triton" if config.model.attention == "triton" else "sdpa"
    dtype = TORCH_DTYPE_MAP[config.training.mixed_precision_param]
    return fastest_attention_on(GPUS[gpu].compute_capability, dtype, args.head_dim)


def job_of(config: JobConfig, ranks: int, gpu: GpuName, planned: Planned, accumulates: bool) -> Job:
    """Return what of a job decides its memory.

    Args: ranks: data-parallel ones
    """
    args, training = model_args(config), config.training
    size = TORCH_DTYPE_MAP[training.mixed_precision_param].itemsize
    float8 = config.quantize.linear.float8
    recipe = float8.recipe_name if FLOAT8 in config.model.converters else None
    if recipe is not None and float8.filter_fqns:
        recipe = "rowwise_with_gw_hp"  # a layer left out keeps its input as this recipe does
    tensor_parallel = config.parallelism.tensor_parallel_degree
    elements = {name: p.to_local().numel() for name, p in planned.parameters.items()}
    return Job(
        args=args,
        form=BlockForm(
            _attention(config, gpu), compiles_model(config), tensor_parallel, size, recipe
        ),
        kept=_kept(config, args.n_layers),
        groups=groups_of(planned.parameters, args.tie_embeddings),
        # Muon has a momentum, AdamW two moments.
        state_elements=sum(n if name in planned.muon else 2 * n for name, n in elements.items()),
        exchange_bytes=planned.exchange_bytes,
        ranks=ranks // config.parallelism.data_parallel_replicate_degree,
        parameter_bytes=TORCH_DTYPE_MAP[training.dtype].itemsize,
        reduce_bytes=TORCH_DTYPE_MAP[training.mixed_precision_reduce].itemsize,
        gathered_bytes=1 if float8.enable_fsdp_float8_all_gather else size,
        accumulates=accumulates,
        keeps_gathered=config.parallelism.fsdp_reshard_after_forward == "never",
        has_replicas=config.parallelism.data_parallel_replicate_degree > 1,
        loss_chunk_tokens=config.loss.chunk_tokens,
        compiles_loss=config.compile.enable and "loss" in config.compile.components,
        evaluation_bytes=_evaluation_bytes(config, planned.parameters),
    )


def _evaluation_bytes(config: JobConfig, parameters: Mapping[str, DTensor]) -> int:
    """Return what a rank gathers of the model for an evaluation."""
    if not config.evaluation.enable:
        return 0
    sizes = [parameter.numel() for parameter in parameters.values()]
    training = config.training
    size = TORCH_DTYPE_MAP[training.mixed_precision_param].itemsize
    return size * sum(sizes) + TORCH_DTYPE_MAP[training.dtype].itemsize * max(sizes)


def _kept(config: JobConfig, num_blocks: int) -> tuple[Kept, ...]:
    """Return what each block keeps under the job's activation checkpointing."""
    checkpoint = config.activation_checkpoint
    if checkpoint.mode == "none":
        return ("all",) * num_blocks
    if checkpoint.mode == "full":
        return ("input",) * num_blocks
    option = checkpoint.selective_ac_option
    if option in ("products", "op"):
        return (option,) * num_blocks
    return tuple("all" if block % int(option) else "input" for block in range(1, num_blocks + 1))


def groups_of(parameters: Mapping[str, DTensor], is_tied: bool) -> Groups:
    """Return the groups that FSDP gathers, of sharded parameters by their plain names."""
    found = {name: Counter() for name in Groups._fields}
    for name, parameter in parameters.items():
        part, _, rest = name.partition(".")
        group = {"layers": "block", "tok_embeddings": "embedding", "scalars": "scalars"}.get(part)
        if group is None or (group == "embedding" and is_tied):
            group = "head"
        if group == "block" and not rest.startswith("0."):
            continue  # blocks are alike
        found[group].update(whole=_gathered(parameter), shard=parameter.to_local().numel())
    return Groups(**{name: Group(**elements) for name, elements in found.items()})


def _gathered(parameter: DTensor) -> int:
    """Return the elements of a parameter that FSDP gathers: a tensor-parallel rank's part."""
    names = parameter.device_mesh.mesh_dim_names or ()
    if "tp" not in names or parameter.placements[names.index("tp")].is_replicate():
        return parameter.numel()
    return parameter.numel() // parameter.device_mesh.size(names.index("tp"))


def newton_schulz_bytes(plan: Plan, settings: Muon, parameter_bytes: int) -> int:
    """Return what Newton-Schulz needs for the largest batch, beside its input and its result.

    Of a batch of matrices m x n, m <= n, three times itself, and of m x m matrices four in the Gram
    form and two in the direct one: the two thirds of `peak_exchange_bytes` that were measured on
    an H200 (titan_motif.components.muon.cost_model).
    """
    is_exact = settings.mode == "exact"  # in the parameters' dtype, one matrix at a time
    size, largest = parameter_bytes if is_exact else 2, 0
    for chunk in plan.chunks:
        batches = Counter(
            (owner, plan.matrices[matrix].shape)
            for matrix in chunk
            for owner in plan.owners[matrix]
        )
        for (_, shape), number in batches.items():
            number = 1 if is_exact else number
            m, n = sorted(shape)
            method = settings.method
            if method == "auto":
                method = "direct" if is_exact else choose_method(m, n, number)
            squares = 4 if method == "gram" else 2
            largest = max(largest, size * number * (3 * m * n + squares * m * m))
    return largest


# ---- what to do, and what to print


def _what_would_fit(job: Job, batch: MicroBatch, limit_bytes: float) -> list[str]:
    """Return the least changes that make a job fit, each by itself."""
    found = []
    sequences = largest_batch(job, batch.seq_len, limit_bytes)
    if sequences:
        found.append(f"a micro-batch of {sequences} x {batch.seq_len} tokens")
    for kept, settings in (
        ("products", "activation_checkpoint.mode = 'selective' (products)"),
        ("input", "activation_checkpoint.mode = 'full'"),
    ):
        other = replace(job, kept=(kept,) * len(job.kept))
        if peak(other, batch.tokens)[1].total <= limit_bytes:
            found.append(settings)
            break
    return found or ["more GPUs that share parameters, gradients and the optimizer's state"]


def print_memory(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of memory; a line holds `gpus` and `memory`."""
    known = [line for line in found if "reason" not in line["memory"]]
    for line in found:
        if line not in known:
            print(f"{_gpus(line)}: memory is not predicted: {line['memory']['reason']}")
    if not known:
        return
    first = known[0]["memory"]
    print(
        f"GiB of tensors on a GPU at the moment that takes most; {first['gpu']} has "
        f"{_gib(first['capacity_bytes'])}, of which {RESERVE:.0%} are kept for CUDA's context, "
        "NCCL and fragmentation"
    )
    table = Table(box=None, header_style="bold")
    names = list(Parts.__dataclass_fields__)
    for heading in ("GPUs", "batch", *names, "peak", "moment", "fits", "largest batch"):
        table.add_column(heading, justify="right")
    for line in known:
        memory = line["memory"]
        table.add_row(
            f"{line['gpus']}",
            f"{memory['micro_batch_tokens'] / memory['seq_len']:g}",
            *(_gib(memory[name]) for name in names),
            _gib(memory["peak_bytes"]),
            memory["moment"],
            "yes" if memory["fits"] else "no",
            f"{memory['largest_local_batch']}",
        )
    Console(width=140 if not sys.stdout.isatty() else None).print(table)
    print(f"a batch is a rank's micro-batch, in sequences of {first['seq_len']} tokens")
    for line in known:
        memory = line["memory"]
        if not memory["fits"]:
            room = (1 - RESERVE) * memory["capacity_bytes"]
            print(
                f"{_gpus(line)}: does not fit: {_gib(memory['peak_bytes'])} GiB in "
                f"{_gib(room)}; what would: {', or '.join(memory['what_would_fit'])}"
            )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f}"


def _gpus(line: Mapping[str, Any]) -> str:
    return f"{line['gpus']} GPU{'s' if line['gpus'] > 1 else ''}"
