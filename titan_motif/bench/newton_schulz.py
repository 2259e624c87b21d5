"""`titan-motif bench newton-schulz`: orthogonalising a flavor's matrices, as in Table 4."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from titan_motif.bench import dion
from titan_motif.bench.frame import print_table, write_figures
from titan_motif.bench.measure import measure
from titan_motif.bench.muon import matrices_of, nominal_flops
from titan_motif.components.muon import Coefficients, named_coefficients, orthogonalize
from titan_motif.components.muon.method import choose_method
from titan_motif.model import FLAVORS
from titan_motif.study.machine import CPU_NOTE, choose_device, choose_flavor, told_machine

NUM_RANKS = 8
"""Ranks over which a flavor's matrices are dealt out."""
EPS = 1e-7
"""Least norm of torch.optim.Muon."""
BUDGET_MS = 300.0
"""Of the timed calls of one line."""


@dataclass
class Options:
    """Orthogonalise a flavor's matrices by ours, torch.optim.Muon's form and Dion's kernels.

    Example: titan-motif bench newton-schulz --shapes 2048x4096 4096x4096 --batch 1 --no-quality
    """

    flavor: str = ""
    """Whose matrices; none means 12_7b on a GPU, debug on a CPU."""
    shapes: tuple[str, ...] = ()
    """ROWSxCOLUMNS of matrices, in place of the flavor's."""
    batch: int | None = None
    """Matrices of a shape; none means as many as one of 8 ranks owns of the flavor's."""
    coefficients: str = "motif"
    """A name of titan_motif.components.muon.coefficients."""
    quality: bool = True
    """Judge one matrix of each shape by its singular values, and by the SVD's polar factor."""
    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class Measurement:
    """One line of the table."""

    rows: int
    columns: int
    batch: int
    contender: str
    method: str
    """Of ours: direct or gram."""
    ms: float
    """Of the whole batch."""
    nominal_tflops: float
    """Full products, whatever was computed: Table 4's measure."""
    largest: float | None
    """Singular value of a result; None where it was not judged."""
    smallest: float | None
    distance: float | None
    """From the polar factor U V^T of G = U S V^T, relative, in the Frobenius norm."""


Orthogonalizer = Callable[[Tensor], Tensor]


def main(options: Options) -> None:
    """Time and judge every contender on every shape, and print and write the table."""
    device = choose_device()
    if options.batch is not None and options.batch < 1:
        raise ValueError(f"--batch is {options.batch}; a positive number is needed")
    flavor = choose_flavor(options.flavor, device, FLAVORS)
    batches = _batches(options, flavor)
    coefficients = named_coefficients(options.coefficients)
    contenders = _contenders(coefficients)
    cases = [(*case, name) for case in batches.items() for name in contenders]
    console = Console(stderr=True)
    found = [
        _measure(shape, batch, name, contenders[name], options.quality, device)
        for shape, batch, name in track(cases, "measuring", console=console, transient=True)
    ]
    if device == "cpu":
        print(CPU_NOTE)
    print(f"{told_machine(device)}, bfloat16 in and out, {options.coefficients}")
    if not dion.IS_INSTALLED:
        print("Dion is not installed: pip install git+https://github.com/microsoft/dion")
    _print_table(found)
    is_a_rank = not options.shapes and options.batch is None
    totals = {contender: _total(found, contender) for contender in contenders}
    if is_a_rank:
        print(f"all matrices of one of {NUM_RANKS} ranks of {flavor}:")
        for contender, (ms, tflops) in totals.items():
            print(f"  {contender}: {ms:.2f} ms, {tflops:.0f} nominal TFLOP/s")
    common = {"dtype": "bfloat16", "coefficients": options.coefficients}
    if is_a_rank:
        common |= {"flavor": flavor, "ranks": NUM_RANKS}
        common["one_rank"] = {
            contender: {"ms": ms, "nominal_tflops": tflops}
            for contender, (ms, tflops) in totals.items()
        }
    write_figures(options.json, device, found, **common)


def _batches(options: Options, flavor: str) -> dict[tuple[int, int], int]:
    """Return the shapes and how many matrices of each."""
    if options.shapes:
        return {_shape(word): options.batch or 1 for word in options.shapes}
    counts = Counter(matrices_of(flavor, None))
    return {shape: options.batch or -(-count // NUM_RANKS) for shape, count in counts.items()}


def _shape(word: str) -> tuple[int, int]:
    sizes = word.split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(f"--shapes has {word!r}; ROWSxCOLUMNS is needed, such as 4096x16384")
    return int(sizes[0]), int(sizes[1])


def _contenders(coefficients: Coefficients) -> dict[str, Orthogonalizer]:
    def each(function: Orthogonalizer) -> Orthogonalizer:
        return lambda matrices: [function(matrix) for matrix in matrices]

    theirs = {name: each(function) for name, function in dion.orthogonalizers().items()}
    return {
        "torch.optim.Muon": each(lambda matrix: plain(matrix, coefficients)),
        **theirs,
        "ours": lambda matrices: orthogonalize(matrices, coefficients),
    }


def plain(matrix: Tensor, coefficients: Coefficients) -> Tensor:
    """Orthogonalise by what torch.optim.Muon computes, with coefficients for each step.

    (torch.optim._muon._zeropower_via_newtonschulz, which knows the same ones for all steps)
    """
    x = matrix.bfloat16()
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    x = x / x.norm().clamp(min=EPS)
    for a, b, c in coefficients:
        gram = x @ x.T
        update = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, update, x, beta=a)
    return x.T if is_tall else x


def _measure(
    shape: tuple[int, int],
    batch: int,
    name: str,
    contender: Orthogonalizer,
    is_judged: bool,
    device: str,
) -> Measurement:
    generator = torch.Generator(device).manual_seed(0)
    matrices = torch.randn(batch, *shape, device=device, generator=generator).bfloat16()
    ms = measure(lambda: contender(matrices), device, budget_ms=BUDGET_MS).ms
    judged = _judge(matrices[0], contender(matrices)[0]) if is_judged else (None, None, None)
    return Measurement(
        *shape,
        batch,
        name,
        choose_method(*shape, batch, device == "cuda") if name == "ours" else "direct",
        ms,
        batch * nominal_flops(shape) / ms / 1e9,
        *judged,
    )


def _judge(matrix: Tensor, result: Tensor) -> tuple[float, float, float]:
    """Return the result's largest and smallest singular value, and its distance, in float64."""
    g, x = (t.double() if t.shape[0] <= t.shape[1] else t.double().T for t in (matrix, result))
    # (G G^T)^(-1/2) G is U V^T; in float64 good to about 1e-8 for random matrices.
    squares, u = torch.linalg.eigh(g @ g.T)
    polar = (u * squares.rsqrt()) @ (u.T @ g)
    values = torch.linalg.eigvalsh(x @ x.T).clamp_min(0).sqrt()
    distance = (x - polar).norm() / polar.norm()
    return values[-1].item(), values[0].item(), distance.item()


def _total(found: list[Measurement], contender: str) -> tuple[float, float]:
    """Return milliseconds and nominal TFLOP/s over all shapes."""
    lines = [line for line in found if line.contender == contender]
    ms = sum(line.ms for line in lines)
    return ms, sum(line.nominal_tflops * line.ms for line in lines) / ms


def _print_table(found: list[Measurement]) -> None:
    table = Table(box=None, header_style="bold")
    for heading in ("matrices", "contender", "method"):
        table.add_column(heading)
    for heading in ("ms", "TFLOP/s", "largest", "smallest", "distance"):
        table.add_column(heading, justify="right")
    for line in found:
        judged = (line.largest, line.smallest, line.distance)
        table.add_row(
            f"{line.batch} of {line.rows} x {line.columns}",
            line.contender,
            line.method,
            f"{line.ms:.3f}",
            f"{line.nominal_tflops:.3g}",
            *("-" if value is None else f"{value:.4f}" for value in judged),
        )
    print_table(table, 110)
