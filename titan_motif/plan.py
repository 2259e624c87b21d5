"""`titan-motif plan`: what a job on N GPUs takes of each, before any is rented.

Who orthogonalises what, and what that costs: the model is parallelised as a run would have it, on
meta tensors and a process group that sends nothing, and the optimizer's own planning is asked.
How much memory a step takes: titan_motif.plan_memory.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.distributed.tensor import DTensor

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from torchtitan.distributed import ParallelDims

from titan_motif.components.muon.cost_model import (
    DEFAULT_RATES,
    Rates,
    costs_of,
    groups_of_replicas,
    plan_for,
    predict,
    unlike_groups,
)
from titan_motif.components.muon.layout import families_of
from titan_motif.components.muon.owners import assign_owners
from titan_motif.components.muon.plan import Plan
from titan_motif.components.muon.routing import route
from titan_motif.config import JobConfig
from titan_motif.config_loading import load_config
from titan_motif.model import Motif2Model
from titan_motif.model.initialization import plain_name
from titan_motif.network import model_args
from titan_motif.optimizers import muon_coefficients
from titan_motif.parallelize import parallelize
from titan_motif.plan_memory import (
    GpuName,
    Planned,
    newton_schulz_bytes,
    plan_memory,
    print_memory,
    words_for,
)
from titan_motif.simulation import simulated_ranks


@dataclass
class Options:
    """Plan a job on any number of GPUs: Parallel Muon's loads, bytes and time; memory of a step.

    Example: titan-motif plan --config train_configs/motif2_12_7b.toml --gpus 8,64,400
    """

    config: Path
    """The job's TOML file; its parallel degrees hold, and sharding takes what they leave."""
    gpus: str = ""
    """Numbers of GPUs, with commas; none means the product of the degrees in the file."""
    replicas: int | None = None
    """Replicas (HSDP) in place of the file's parallelism.data_parallel_replicate_degree."""
    gpu: GpuName = "H100-80GB"
    """The card whose memory has to suffice."""
    tflops: float = Rates.flops / 1e12
    """Newton-Schulz on one GPU, TFLOP/s (symmetric products counted as half)."""
    gb_in_node: float = Rates.bytes_in_node / 1e9
    """GB/s that a GPU exchanges with others of its node."""
    gb_between_nodes: float = Rates.bytes_between_nodes / 1e9
    """GB/s that a GPU exchanges with other nodes."""
    gpus_per_node: int = Rates.ranks_per_node
    """GPUs of a node."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the figures to this file."""


def main(options: Options) -> None:
    """Plan a job on each number of GPUs, and print and write what that takes."""
    rates = Rates(
        options.tflops * 1e12,
        options.gb_in_node * 1e9,
        options.gb_between_nodes * 1e9,
        options.gpus_per_node,
    )
    if not min(dataclasses.astuple(rates)) > 0:
        raise ValueError(f"rates are {dataclasses.astuple(rates)}; more than 0 is needed")
    numbers = _numbers(options)
    console = Console(stderr=True)
    bar = {"console": console, "transient": True, "disable": not console.is_terminal}
    found = [
        plan_job(options.config, gpus, rates, options.gpu, options.replicas)
        for gpus in track(numbers, "planning", **bar)
    ]
    _print(found, rates)
    if options.json is not None:
        content = found[0] if len(found) == 1 else found
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _numbers(options: Options) -> list[int]:
    if not options.gpus:
        parallelism = _load(options.config, replicas=options.replicas).parallelism
        degrees = (
            parallelism.data_parallel_replicate_degree,
            parallelism.data_parallel_shard_degree,
            parallelism.tensor_parallel_degree,
        )
        if -1 in degrees:
            raise ValueError(
                f"--gpus is not given, and {options.config} leaves data_parallel_shard_degree to "
                "the number of GPUs; give --gpus N[,N...]"
            )
        return [math.prod(degrees)]
    try:
        numbers = [int(word) for word in options.gpus.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise ValueError(f"--gpus is {options.gpus!r}; positive numbers with commas are needed")
    return numbers


def _load(path: Path, world_size: int | None = None, replicas: int | None = None) -> JobConfig:
    """Return the job without its data: a batch fits few numbers of GPUs, and no layout needs it."""
    words = [*words_for(path, replicas), "--curriculum.enable=false", "--training.steps", "1"]
    words += ["--training.local_batch_size", "1", "--training.global_batch_size", "-1"]
    return load_config(words, world_size, False)


def plan_job(
    path: Path,
    gpus: int,
    rates: Rates,
    gpu: GpuName = "H100-80GB",
    replicas: int | None = None,
) -> dict[str, Any]:
    """Return what the JSON of one number of GPUs holds.

    Raises: ConfigError or ValueError, one line, if the job does not fit so many
    """
    begin = time.perf_counter()
    config = _load(path, gpus, replicas)
    with simulated_ranks(gpus):
        model = parallel_model(config, gpus)
        parameters = {plain_name(name): p for name, p in model.named_parameters()}
        muon, planned = None, Planned(parameters)
        if config.optimizer.name == "ParallelMuon":
            muon, planned = _plan_muon(config, parameters, rates)
        as_written = load_config(words_for(path, replicas), None, False)
        memory = plan_memory(as_written, gpus, gpu, planned)
    return {
        "config": str(path),
        "parameters": sum(p.numel() for p in parameters.values()),
        "gpus": gpus,
        "muon": muon,
        "memory": memory,
        "seconds": round(time.perf_counter() - begin, 2),
    }


def parallel_model(config: JobConfig, world_size: int) -> nn.Module:
    """Return the job's model on meta, parallelised over so many ranks."""
    parallelism = config.parallelism
    dims = ParallelDims(
        dp_replicate=parallelism.data_parallel_replicate_degree,
        dp_shard=parallelism.data_parallel_shard_degree,
        tp=parallelism.tensor_parallel_degree,
        **dict.fromkeys(("cp", "pp", "ep", "etp"), 1),
        world_size=world_size,
    )
    config.compile.enable = False  # nothing is run
    config.activation_checkpoint.mode = "none"
    with torch.device("meta"):
        model = Motif2Model(model_args(config))
    return parallelize(model, dims, config)


def _plan_muon(
    config: JobConfig, parameters: Mapping[str, DTensor], rates: Rates
) -> tuple[dict[str, Any], Planned]:
    """Return the `muon` of the JSON, and what memory has to know of it."""
    muon = config.optimizer.muon
    shapes = {name: p.shape for name, p in parameters.items()}
    routes = route(shapes, muon.muon_patterns, muon.adamw_patterns)
    matrices = [name for name, algorithm in routes.items() if algorithm == "muon"]
    families = families_of([parameters[name] for name in matrices], rank=0)
    if not families:
        raise ValueError("optimizer.muon.adamw_patterns leave no matrix to Muon: nothing to plan")
    (family,) = families  # all matrices of blocks lie on one mesh
    costs = costs_of(family.matrices, muon.mode, muon.method, len(muon_coefficients(muon)))
    settings = {
        "chunk_size": None if muon.chunk_size == -1 else muon.chunk_size,
        "owner_scope": None if muon.owner_scope == -1 else muon.owner_scope,
        "everyone_owns": muon.mode == "distributed",
    }

    def plan_of(rank: int, rates: Rates) -> Plan:
        return plan_for(rank, family.matrices, family.replicas, costs, **settings, rates=rates)

    plan = plan_of(0, rates)
    groups = unlike_groups(groups_of_replicas(family.replicas, len(plan.replicas)), rates)
    element_bytes = 4 if muon.mode == "exact" else 2
    found = max(
        (predict(plan_of(g[0][0], rates), costs, rates, element_bytes) for g in groups),
        key=lambda prediction: prediction.total_ms,
    )
    working = newton_schulz_bytes(plan, muon, family.parameters[0].element_size())
    held = found.peak_exchange_bytes + working
    return {
        "owner_scope_of_a_run": len(plan_of(0, DEFAULT_RATES).replicas),
        "matrices": len(plan.matrices),
        "parameters": sum(m.rows * m.columns for m in plan.matrices),
        "replicas": len(family.replicas),
        "owner_scope": len(plan.replicas),
        "owners": len(plan.ranks),
        "chunks": len(plan.chunks),
        "flops": sum(costs),
        "max_over_mean": found.max_over_mean,
        "floor_of_max_over_mean": max(1.0, max(costs) * len(plan.ranks) / sum(costs)),
        "max_over_mean_if_split_in_two": _balance_of_halves(costs, len(plan.ranks)),
        "flops_per_rank": found.flops_per_rank,
        "bytes_per_rank": found.bytes_per_rank,
        "peak_exchange_bytes": found.peak_exchange_bytes,
        "predicted_ms": found.total_ms,
        "compute_ms": found.compute_ms,
        "exchange_ms": found.exchange_ms,
    }, Planned(parameters, frozenset(matrices), held)


def _balance_of_halves(costs: Sequence[int], num_owners: int) -> float:
    """Return max / mean of the loads if two ranks could share every matrix, half of it each."""
    halves = [cost / 2 for cost in costs for _ in range(2)]
    loads = [0.0] * num_owners
    for half, owner in zip(halves, assign_owners(halves, num_owners), strict=True):
        loads[owner] += half
    return max(loads) * num_owners / sum(loads)


def _print(found: Sequence[dict[str, Any]], rates: Rates) -> None:
    first = found[0]
    print(f"{first['config']}: {first['parameters']:,} parameters")
    if first["muon"] is not None:
        _print_muon(found, rates)
    print_memory(found)


def _print_muon(found: Sequence[dict[str, Any]], rates: Rates) -> None:
    first = found[0]["muon"]
    print(
        f"{first['matrices']} matrices of Muon's with {first['parameters']:,}, predicted with "
        f"{rates.flops / 1e12:.0f} TFLOP/s, {rates.bytes_in_node / 1e9:.0f} GB/s in a node of "
        f"{rates.ranks_per_node} and {rates.bytes_between_nodes / 1e9:.0f} GB/s between nodes"
    )
    table = Table(box=None, header_style="bold")
    for heading in (
        "GPUs",
        "replicas",
        "sharing owners",
        "chunks",
        "max / mean",
        "TFLOP a rank",
        "GB a rank",
        "held MB",
        "compute ms",
        "exchange ms",
        "step ms",
    ):
        table.add_column(heading, justify="right")
    for line in found:
        muon = line["muon"]
        table.add_row(
            f"{line['gpus']}",
            f"{muon['replicas']}",
            f"{muon['owner_scope']}",
            f"{muon['chunks']}",
            f"{muon['max_over_mean']:.3f}",
            f"{muon['flops_per_rank'] / 1e12:.2f}",
            f"{muon['bytes_per_rank'] / 1e9:.2f}",
            f"{muon['peak_exchange_bytes'] / 1e6:,.0f}",
            f"{muon['compute_ms']:.1f}",
            f"{muon['exchange_ms']:.1f}",
            f"{muon['predicted_ms']:.1f}",
        )
    Console(width=120 if not sys.stdout.isatty() else None).print(table)
    for line in found:
        muon = line["muon"]
        if muon["owner_scope"] != muon["owner_scope_of_a_run"]:
            print(
                f"{line['gpus']} GPUs: a run, which knows no such rates, would let "
                f"{muon['owner_scope_of_a_run']} replicas share owners; "
                f"optimizer.muon.owner_scope = {muon['owner_scope']} tells it"
            )
        if muon["floor_of_max_over_mean"] > 1.02:
            print(
                f"{line['gpus']} GPUs: one matrix is the floor, max / mean "
                f"{muon['floor_of_max_over_mean']:.2f}; if two ranks shared each matrix it would "
                f"be {muon['max_over_mean_if_split_in_two']:.2f}"
            )
