"""`titan-motif bench muon`: a step of Parallel Muon beside Distributed Muon, as in Table 4.

Under torchrun the ranks are real. Otherwise this process is one rank of N on a process group that
sends nothing: packing, copies and Newton-Schulz are those of the rank, and what it would receive is
random data, copied into its buffers as an exchange would write it. Then the milliseconds are those
of a network that is never waited for.
"""

import contextlib
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
import torch.distributed as dist
from rich.table import Table
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from titan_motif.bench.frame import print_table, write_figures
from titan_motif.components.muon import ParallelMuon
from titan_motif.components.muon.cost_model import Rates, costs_of, predict
from titan_motif.components.muon.routing import Algorithm, route
from titan_motif.config import Muon
from titan_motif.model import FLAVORS, Motif2Model, Motif2ModelArgs
from titan_motif.plan_memory import newton_schulz_bytes
from titan_motif.simulation import simulated_ranks
from titan_motif.study.machine import choose_device, choose_flavor, told_machine

NUM_STEPS = 5
"""Timed steps, of which the median counts."""
NO_NETWORK = Rates(bytes_in_node=math.inf, bytes_between_nodes=math.inf)
"""Of simulated ranks."""


@dataclass
class Options:
    """Time a step of Parallel and of Distributed Muon on a flavor's matrices, sharded by FSDP.

    Example: titan-motif bench muon --ranks 8 --chunk-size 8,16,32,64,all
    Example: torchrun --nproc_per_node 4 -m titan_motif.cli bench muon --flavor debug
    """

    flavor: str = ""
    """Whose matrices; none means 12_7b on a GPU, debug on a CPU."""
    layers: int | None = None
    """Blocks, in place of the flavor's."""
    ranks: int = 8
    """Ranks of the simulated process group; under torchrun there are as many as it started."""
    rank: int = 0
    """Which one of the simulated ranks to be."""
    chunk_size: str = "default"
    """Matrices in a chunk: numbers with commas; 'default' is 4 for each rank, 'all' all of them."""
    modes: tuple[Literal["parallel", "distributed"], ...] = ("parallel", "distributed")
    """What to time."""
    seed: int = 0
    """Of the random gradients."""
    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class Measurement:
    """One line of the table."""

    mode: str
    chunk_size: int
    ms: float
    planned_ms: float
    """By `titan-motif plan`'s model at its rates: Newton-Schulz, and what the exchange leaves
    uncovered (nothing of simulated ranks); momentum, packing and the update are not in it."""
    peak_mb: float | None
    """Over what is resident (parameters, gradients, momentum); None on a CPU."""
    planned_mb: float
    """By the same model: a chunk's buffers, matrices and results, and Newton-Schulz's products."""
    tflops_per_gpu: float
    """Full products, each matrix once, over all ranks' time: Table 4's measure."""
    tflop_of_rank: float
    """What this rank computes, symmetric products counted as half."""
    gb_of_rank: float
    """Sent or received, both directions, by the busiest rank."""


def main(options: Options) -> None:
    """Time every mode and chunk size, and print and write the table on the first rank."""
    device = choose_device()
    flavor = choose_flavor(options.flavor, device, FLAVORS)
    is_real = "WORLD_SIZE" in os.environ
    if options.ranks < 1 or (options.layers is not None and options.layers < 1):
        raise ValueError("--ranks and --layers need at least 1")
    if not is_real and not 0 <= options.rank < options.ranks:
        raise ValueError(f"--rank is {options.rank}; 0 to {options.ranks - 1} is allowed")
    shapes = matrices_of(flavor, options.layers)
    with _ranks(options, is_real, device):
        sizes = _chunk_sizes(options.chunk_size, len(shapes))
        rates = Rates() if is_real else NO_NETWORK
        found = [
            measure_step(shapes, mode, size, device, options.seed, rates)
            for mode in options.modes
            for size in sizes
        ]
        world_size, rank = dist.get_world_size(), dist.get_rank()
    if is_real and rank:
        return
    kind = f"{world_size} real ranks" if is_real else f"rank {rank} of {world_size}, simulated"
    print(f"{told_machine(device)}; {len(shapes)} matrices of {flavor}; {kind}")
    _print(found)
    common = {"flavor": flavor, "ranks": world_size, "simulated": not is_real}
    write_figures(options.json, device, found, **common, matrices=len(shapes))


def matrices_of(flavor: str, layers: int | None) -> list[tuple[int, ...]]:
    """Return the shapes of Muon's matrices, of the first blocks alone if their number is given."""
    args = FLAVORS[flavor]
    if layers is not None:
        args = dataclasses.replace(args, n_layers=min(layers, args.n_layers))
    return shapes_by_algorithm(args)["muon"]


def shapes_by_algorithm(args: Motif2ModelArgs) -> dict[Algorithm, list[tuple[int, ...]]]:
    """Return the shapes of the parameters that each algorithm updates."""
    with torch.device("meta"):
        model = Motif2Model(args)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    routes = route(shapes)
    return {
        algorithm: [shape for name, shape in shapes.items() if routes[name] == algorithm]
        for algorithm in ("muon", "adamw")
    }


def _chunk_sizes(words: str, num_matrices: int) -> list[int | None]:
    named = {"default": None, "all": num_matrices}
    try:
        sizes = [named[word] if word in named else int(word) for word in words.split(",")]
    except ValueError:
        sizes = [0]
    if any(size is not None and size < 1 for size in sizes):
        raise ValueError(
            f"--chunk-size is {words!r}; positive numbers, 'default' or 'all', with commas, are "
            "needed"
        )
    return sizes


@contextlib.contextmanager
def _ranks(options: Options, is_real: bool, device: str) -> Iterator[None]:
    """Be a rank."""
    if not is_real:
        with simulated_ranks(options.ranks, options.rank), random_exchange():
            yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def random_exchange() -> Iterator[None]:
    """Receive random data: Newton-Schulz is faster on zeros than on anything real."""
    pools: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def receive(received: Tensor, sent: Tensor, *sizes, **options) -> None:
        key = received.dtype, received.device
        if key not in pools or pools[key].numel() < received.numel():
            pools[key] = torch.randn(received.numel(), device=received.device).to(received.dtype)
        received.copy_(pools[key][: received.numel()])

    with mock.patch.object(dist, "all_to_all_single", receive):
        yield


def measure_step(
    shapes: list[tuple[int, ...]],
    mode: Literal["parallel", "distributed"],
    chunk_size: int | None,
    device: str,
    seed: int,
    rates: Rates,
) -> Measurement:
    """Return what a step took of random gradients; every rank has to call it."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh(device, (world_size,))
    generator = torch.Generator(device).manual_seed(seed * world_size + rank)
    parameters = [_sharded(shape, mesh, rank, world_size, generator) for shape in shapes]
    optimizer = ParallelMuon(
        [{"params": parameters, "algorithm": "muon"}], mode=mode, chunk_size=chunk_size
    )
    (plan,) = optimizer.plans
    costs = costs_of(plan.matrices, mode, optimizer.method, len(optimizer.coefficients))
    predicted = predict(plan, costs, rates)
    working = newton_schulz_bytes(plan, Muon(mode=mode), parameters[0].element_size())
    optimizer.step()  # compiles, and fills the allocator
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        resident = torch.cuda.memory_allocated()
    milliseconds = statistics.median(_step_ms(optimizer, device) for _ in range(NUM_STEPS))
    if world_size > 1:  # the slowest rank's: all wait for it
        slowest = torch.tensor(milliseconds, device=device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        milliseconds = slowest.item()
    peak = (torch.cuda.max_memory_allocated() - resident) / 1e6 if device == "cuda" else None
    return Measurement(
        mode=mode,
        chunk_size=max(map(len, plan.chunks)),
        ms=milliseconds,
        planned_ms=predicted.total_ms,
        peak_mb=peak,
        planned_mb=(predicted.peak_exchange_bytes + working) / 1e6,
        tflops_per_gpu=sum(map(nominal_flops, shapes)) / world_size / milliseconds / 1e9,
        tflop_of_rank=sum(
            cost for cost, owners in zip(costs, plan.owners, strict=True) if rank in owners
        )
        / 1e12,
        gb_of_rank=predicted.bytes_per_rank / 1e9,
    )


def nominal_flops(shape: tuple[int, int]) -> int:
    """Return what Table 4 counts for a matrix: full products and element-wise operations."""
    m, n = sorted(shape)
    return 5 * (2 * m**3 + 4 * m * m * n + 2 * m * n + 3 * m * m)  # of five steps


def _sharded(shape, mesh, rank: int, world_size: int, generator: torch.Generator) -> Tensor:
    """Return a parameter of zeros with a random gradient, its rows cut over the ranks."""
    size = -(-shape[0] // world_size)
    rows = max(min(size, shape[0] - rank * size), 0)

    def whole(part: Tensor) -> DTensor:
        stride = (shape[1], 1)
        return DTensor.from_local(
            part, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )

    part = torch.zeros(rows, shape[1], device=mesh.device_type)
    parameter = torch.nn.Parameter(whole(part))
    noise = torch.randn(part.shape, generator=generator, device=mesh.device_type)
    parameter.grad = whole(noise)
    return parameter


def _step_ms(optimizer: ParallelMuon, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    elif dist.get_backend() != "fake":
        dist.barrier()
    begin = time.perf_counter()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin)


def _print(found: list[Measurement]) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("mode")
    headings = ("chunk", "ms", "by plan", "peak MB", "by plan")
    for heading in (*headings, "TFLOPS/GPU", "TFLOP a rank", "GB a rank"):
        table.add_column(heading, justify="right")
    for line in found:
        table.add_row(
            line.mode,
            f"{line.chunk_size}",
            f"{line.ms:.2f}",
            f"{line.planned_ms:.2f}",
            "-" if line.peak_mb is None else f"{line.peak_mb:,.0f}",
            f"{line.planned_mb:,.0f}",
            f"{line.tflops_per_gpu:.3g}",
            f"{line.tflop_of_rank:.3g}",
            f"{line.gb_of_rank:.3g}",
        )
    print_table(table, 100)
    best = {
        mode: min((line for line in found if line.mode == mode), key=lambda line: line.ms)
        for mode in {line.mode for line in found}
    }
    if len(best) == 2:
        parallel, distributed = best["parallel"], best["distributed"]
        print(
            f"parallel is {distributed.ms / parallel.ms:.2f}x as fast as distributed; it computes "
            f"1/{distributed.tflop_of_rank / max(parallel.tflop_of_rank, 1e-12):.2f} on this rank "
            f"and moves {parallel.gb_of_rank / max(distributed.gb_of_rank, 1e-12):.2f}x the bytes"
        )
