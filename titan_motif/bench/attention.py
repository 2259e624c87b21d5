"""`titan-motif bench attention`: grouped differential attention beside what PyTorch offers for it.

Sequences get longer while the number of tokens stays: dense ones, and ones packed with documents
that do not see each other.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from titan_motif import kernels
from titan_motif.bench.attention_peers import four_varlen_calls, two_calls
from titan_motif.bench.frame import print_table, write_figures
from titan_motif.bench.measure import Timing, measure
from titan_motif.model import FLAVORS
from titan_motif.study.machine import CPU_NOTE, choose_device, choose_flavor, told_machine

GPU_LENGTHS = (2048, 4096, 8192, 16384)
LAM = 0.5
EXACT_ABOVE = 100.0
"""Logits that QK-Clip cares about: where random ones never come, so that all bounds suffice."""
MAX_MASK_ELEMENTS = 1 << 28
"""Of an explicit (batch, seq, seq) mask."""


@dataclass
class Options:
    """Measure grouped differential attention, forward and backward, dense and packed.

    Example: titan-motif bench attention --lengths 4096 16384 --packed 2000 --json table.json
    """

    flavor: str = ""
    """Whose heads; none means 12_7b on a GPU, debug on a CPU."""
    ratio: int | None = None
    """Signal heads for each noise head, in place of the flavor's; there are as many groups."""
    head_dim: int | None = None
    """Width of a head, in place of the flavor's."""
    lengths: tuple[int, ...] = ()
    """Tokens of a sequence; none means 2048, 4096, 8192 and 16384, on a CPU 64."""
    tokens: int | None = None
    """Of all sequences together, whatever their length; none means 16384, on a CPU 128."""
    packed: int | None = None
    """Mean length of packed documents; none means 1000, on a CPU 20. 0 leaves them out."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of queries, keys and values."""
    json: Path | None = None
    """Write the figures to this file."""


class Heads(NamedTuple):
    """The heads of a layer; plain attention has as many query heads, and a key head for a pair."""

    groups: int
    pairs: int
    ratio: int
    head_dim: int

    @property
    def num_queries(self) -> int:
        """All query heads: of each group its signal heads and its noise head."""
        return self.groups * (self.ratio + 1)

    def flops(self, width: int, num_pairs: int) -> tuple[int, int]:
        """Return the useful operations of a forward and of a backward pass.

        Equation: forward  = 2 num_pairs num_queries (head_dim + width): logits, values
                  backward = 2 num_pairs num_queries (3 head_dim + 2 width): logits again and their
                             gradient's products with keys and queries; two products with values
        Args:
            width:     of values: head_dim if attention is plain (then backward is 2.5 forward),
                       else twice that
            num_pairs: of a query and a key that it may attend to, in the batch: the causal half.
                       What is computed beside them, or twice, does not count.
        """
        products = 2 * num_pairs * self.num_queries
        return products * (self.head_dim + width), products * (3 * self.head_dim + 2 * width)


class Case(NamedTuple):
    """A batch of sequences."""

    batch: int
    seq: int
    lengths: tuple[int, ...]
    """Of the documents of all sequences, one after the other."""
    is_packed: bool

    @classmethod
    def dense(cls, batch: int, seq: int) -> "Case":
        """Return sequences that are one document each."""
        return cls(batch, seq, (seq,) * batch, is_packed=False)

    @classmethod
    def packed(cls, batch: int, seq: int, mean_length: int) -> "Case":
        """Fill sequences with documents of exponentially distributed lengths; the last is cut."""
        draw = random.Random(0).expovariate
        lengths: list[int] = []
        for _ in range(batch):
            left = seq
            while left:
                lengths.append(min(1 + int(draw(1 / mean_length)), left))
                left -= lengths[-1]
        return cls(batch, seq, tuple(lengths), is_packed=True)

    @property
    def num_pairs(self) -> int:
        """Pairs of a query and a key of its document that does not lie after it."""
        return sum(length * (length + 1) // 2 for length in self.lengths)

    @property
    def mean_document_length(self) -> float | None:
        """In tokens; None where sequences are one document each."""
        return self.batch * self.seq / len(self.lengths) if self.is_packed else None

    def documents(self, device: str) -> kernels.Documents:
        """Return the documents as the kernels take them."""
        lengths = torch.tensor(self.lengths, device=device)
        ids = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
        return kernels.documents_of(ids.view(self.batch, self.seq))

    def __str__(self) -> str:
        mean = self.mean_document_length
        return f"{self.batch} x {self.seq}" + ("" if mean is None else f", documents of {mean:.0f}")


class Contender(NamedTuple):
    """A way to compute attention."""

    name: str
    run: Callable[..., Any]
    """From q, k, v and lam to the output, or to a tuple that begins with it."""
    is_plain: bool = False
    problem: str | None = None
    """Why it is not measured."""


@dataclass(frozen=True)
class Measurement:
    """What one contender took for one direction, or for both."""

    contender: str
    direction: str
    batch: int
    seq: int
    packed: bool
    mean_document_length: float | None
    ms: float
    tflops: float
    """A second, of useful operations (`Heads.flops`)."""
    host_us: float
    peak_mb: float | None
    """Of a forward and a backward pass, over inputs and output gradient; None on a CPU."""


def main(options: Options) -> None:
    """Time every contender on every case, and print and draw what was measured."""
    device = choose_device()
    heads, cases, dtype = _heads(options, device), _cases(options, device), options.dtype
    jobs = [(c, one) for c in cases for one in _contenders(c, heads, getattr(torch, dtype), device)]
    console = Console(stderr=True)
    found: list[tuple[Measurement, ...]] = []
    notes: list[str] = []
    for case, contender in track(jobs, "measuring", console=console, transient=True):
        problem = contender.problem
        if problem is None:
            # What PyTorch does not serve, or has no memory for, is told; a failure of ours raises.
            expected = () if contender.name == "ours" else (RuntimeError, TypeError)
            try:
                found.append(_measure(contender, case, heads, getattr(torch, dtype), device))
            except expected as error:
                problem = shorten(str(error), 120)
        if problem is not None:
            notes.append(f"{contender.name}, {case}: {problem}")
    if device == "cpu":
        print(CPU_NOTE)
    groups = f"{heads.groups} groups of {heads.ratio} + 1 query heads"
    print(f"{told_machine(device)}, {dtype}")
    print(f"{groups}, {heads.pairs} pairs of key heads, head_dim {heads.head_dim}")
    for note in notes:
        print(f"not measured: {note}")
    _print_table(found)
    write_figures(
        options.json,
        device,
        (line for lines in found for line in lines),
        dtype=dtype,
        heads=heads._asdict(),
        not_measured=notes,
    )


def _heads(options: Options, device: str) -> Heads:
    differential = [name for name, args in FLAVORS.items() if args.grouped_ratio]
    flavor = choose_flavor(options.flavor, device, differential)
    for name, size in (("ratio", options.ratio), ("head-dim", options.head_dim)):
        if size is not None and size < 1:
            raise ValueError(f"--{name} is {size}; a positive number is needed")
    args = FLAVORS[flavor]
    ratio, head_dim = options.ratio or args.grouped_ratio, options.head_dim or args.head_dim
    return Heads(args.num_groups, args.n_kv_heads // 2, ratio, head_dim)


def _cases(options: Options, device: str) -> list[Case]:
    default = (GPU_LENGTHS, 16384, 1000) if device == "cuda" else ((64,), 128, 20)
    lengths = options.lengths or default[0]
    tokens = default[1] if options.tokens is None else options.tokens
    mean_length = default[2] if options.packed is None else options.packed
    for length in lengths:
        if length < 1 or tokens < 1 or tokens % length:
            raise ValueError(f"--lengths has {length}; a divisor of --tokens {tokens} is needed")
    if mean_length < 0:
        raise ValueError(f"--packed is {mean_length}; 0 or more is needed")
    batches = [(tokens // length, length) for length in lengths]
    packed = [Case.packed(*sizes, mean_length) for sizes in batches] if mean_length else []
    return [*(Case.dense(*sizes) for sizes in batches), *packed]


def _contenders(case: Case, heads: Heads, dtype: torch.dtype, device: str) -> list[Contender]:
    documents = case.documents(device) if case.is_packed else None
    attend = partial(
        kernels.grouped_differential_attention, ratio=heads.ratio, document_ids=documents
    )
    four_calls, with_statistics = partial(attend, implementation="sdpa"), {"with_statistics": True}
    ours = Contender(
        "ours",
        partial(attend, implementation="triton", **with_statistics),
        problem=kernels.attention_problem(dtype, heads.head_dim, torch.device(device)),
    )
    if case.is_packed:
        is_large = case.batch * case.seq**2 > MAX_MASK_ELEMENTS
        problem = f"a mask of over {MAX_MASK_ELEMENTS:,} elements" if is_large else None
        begins = torch.tensor([0, *accumulate(case.lengths)], dtype=torch.int32, device=device)
        varlen = partial(
            four_varlen_calls, begins=begins, longest=max(case.lengths), ratio=heads.ratio
        )
        return [
            Contender("SDPA, four calls", four_calls, problem=problem),
            Contender("varlen, four calls", varlen),
            ours,
        ]
    bounds = partial(four_calls, exact_above=EXACT_ABOVE, **with_statistics)
    return [
        Contender("plain SDPA", lambda q, k, v, lam: kernels.attention(q, k, v), is_plain=True),
        Contender("SDPA, four calls", four_calls),
        Contender("SDPA, four calls + maxima", partial(four_calls, **with_statistics)),
        Contender("SDPA, four calls + bounds", bounds),
        Contender("SDPA, two calls", partial(two_calls, ratio=heads.ratio)),
        ours,
    ]


def _measure(
    contender: Contender, case: Case, heads: Heads, dtype: torch.dtype, device: str
) -> tuple[Measurement, ...]:
    """Measure forward, backward, and tell their sum."""
    generator = torch.Generator(device).manual_seed(0)
    num_keys, width = (1, heads.head_dim) if contender.is_plain else (2, 2 * heads.head_dim)

    def draw(num_heads: int) -> Tensor:
        shape = case.batch, case.seq, num_heads, heads.head_dim
        drawn = torch.randn(shape, device=device, generator=generator)
        return drawn.to(dtype).requires_grad_()

    q, k, v = (draw(n) for n in (heads.num_queries, num_keys * heads.pairs, num_keys * heads.pairs))
    inputs = (q, k, v, torch.tensor(LAM, device=device, requires_grad=True))

    def forward() -> Tensor:
        result = contender.run(*inputs)
        return result[0] if isinstance(result, tuple) else result

    def backward(out: Tensor, retain_graph: bool = True) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(out, inputs, dout, retain_graph, allow_unused=True)

    dout = torch.randn_like(forward())
    peak_mb = _peak_mb(lambda: backward(forward(), False)) if device == "cuda" else None
    ahead = measure(forward, device)
    out = forward()
    back = measure(lambda: backward(out), device)
    flops = heads.flops(width, case.num_pairs)
    both = Timing(ahead.ms + back.ms, ahead.host_us + back.host_us)
    return tuple(
        Measurement(
            contender.name,
            direction,
            case.batch,
            case.seq,
            case.is_packed,
            case.mean_document_length,
            timing.ms,
            operations / timing.ms / 1e9,
            timing.host_us,
            peak_mb,
        )
        for direction, timing, operations in (
            ("forward", ahead, flops[0]),
            ("backward", back, flops[1]),
            ("both", both, sum(flops)),
        )
    )


def _peak_mb(function: Callable[[], Any]) -> float:
    torch.cuda.reset_peak_memory_stats()
    resident = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - resident) / 1e6


def _print_table(found: list[tuple[Measurement, ...]]) -> None:
    table = Table(box=None, header_style="bold")
    for heading in ("batch x length", "documents", "contender"):
        table.add_column(heading, no_wrap=True)
    for heading in ("forward", "backward", "both"):
        table.add_column(f"{heading} ms", justify="right")
        table.add_column("TFLOP/s", justify="right")
    for heading in ("host us", "peak MB"):
        table.add_column(heading, justify="right")
    for lines in found:
        both = lines[-1]
        mean = both.mean_document_length
        table.add_row(
            f"{both.batch} x {both.seq}",
            "-" if mean is None else f"of {mean:.0f}",
            both.contender,
            *(figure for line in lines for figure in (f"{line.ms:.3f}", f"{line.tflops:.3g}")),
            f"{both.host_us:.0f}",
            "-" if both.peak_mb is None else f"{both.peak_mb:,.0f}",
        )
    print_table(table, 140)
