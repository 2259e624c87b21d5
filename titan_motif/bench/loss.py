"""`titan-motif bench loss`: output projection and cross-entropy over a large vocabulary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from titan_motif.bench import liger
from titan_motif.bench.frame import print_table, write_figures
from titan_motif.bench.measure import measure
from titan_motif.components.loss import LinearCrossEntropy
from titan_motif.study.machine import CPU_NOTE, choose_device, told_machine

JUDGED_TOKENS = 256
"""Of a smaller problem with the same weight, whose results are compared with float64."""
BUDGET_MS = 1000.0
"""Of the timed calls of one line."""

MeanLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From hidden states (tokens, dim), weight (vocab, dim) and labels (tokens,) to the mean loss."""


@dataclass
class Options:
    """Measure the loss with both gradients: ours beside torchtitan's form and Liger-Kernel's.

    Example: titan-motif bench loss --chunk-tokens 2048 4096 8192 --json table.json
    """

    tokens: int | None = None
    """Of a micro-batch; none means 16384, on a CPU 512."""
    dim: int | None = None
    """Of a hidden state; none means 4096, on a CPU 64."""
    vocab: int | None = None
    """Entries; none means 219520, on a CPU 1000."""
    chunk_tokens: tuple[int, ...] = (2048, 4096, 8192)
    """Of ours: tokens whose logits are there at a time."""
    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class Measurement:
    """One line of the table."""

    contender: str
    ms: float
    """Of the loss and both gradients, bfloat16."""
    peak_gib: float | None
    """Beyond the inputs; None on a CPU."""
    error: float
    """Relative norm of the error against float64, the largest of the loss and both gradients."""


def main(options: Options) -> None:
    """Time every form of the loss, and print and write the table."""
    device = choose_device()
    sizes = _sizes(options, device)
    contenders = _contenders(options.chunk_tokens)
    console = Console(stderr=True)
    found = [
        _measure(name, contender, sizes, device)
        for name, contender in track(
            contenders.items(), "measuring", console=console, transient=True
        )
    ]
    if device == "cpu":
        print(CPU_NOTE)
    tokens, dim, vocab = sizes
    print(f"{told_machine(device)}; {tokens:,} tokens x {dim:,}, {vocab:,} entries")
    if not liger.IS_INSTALLED:
        print("Liger-Kernel is not installed: pip install --no-deps liger-kernel==0.8.5")
    _print_table(found)
    common = {"dtype": "bfloat16", "tokens": tokens, "dim": dim, "vocab": vocab}
    write_figures(options.json, device, found, **common)


def _sizes(options: Options, device: str) -> tuple[int, int, int]:
    """Return tokens, dim and vocab, or raise ValueError for what cannot be."""
    defaults = (16384, 4096, 219_520) if device == "cuda" else (512, 64, 1000)
    for name in ("tokens", "dim", "vocab", "chunk_tokens"):
        value = getattr(options, name)
        smallest = min(value, default=0) if name == "chunk_tokens" else value
        if smallest is not None and smallest < 1:
            shown = name.replace("_", "-")
            raise ValueError(f"--{shown} has {smallest}; positive numbers are needed")
    asked = (options.tokens, options.dim, options.vocab)
    tokens, dim, vocab = (d if n is None else n for n, d in zip(asked, defaults, strict=True))
    return tokens, dim, vocab


def _contenders(chunk_sizes: Sequence[int]) -> dict[str, MeanLoss]:
    found: dict[str, MeanLoss] = {
        "F.cross_entropy, eager": _whole,
        "F.cross_entropy, compiled (torchtitan's)": torch.compile(_whole, dynamic=False),
    }
    if (theirs := liger.linear_cross_entropy()) is not None:
        found["Liger-Kernel, fused"] = theirs
    for size in chunk_sizes:
        found[f"ours, compiled, {size} tokens at a time"] = _ours(size, is_compiled=True)
    found[f"ours, eager, {chunk_sizes[-1]} tokens at a time"] = _ours(
        chunk_sizes[-1], is_compiled=False
    )
    return found


def _whole(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the loss from whole logits, in at least float32, as torchtitan has it."""
    logits = hidden @ weight.t()
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, labels)


def _ours(chunk_tokens: int, *, is_compiled: bool) -> MeanLoss:
    loss = LinearCrossEntropy(chunk_tokens)
    if is_compiled:
        loss.compile("inductor")
    return lambda hidden, weight, labels: loss(hidden, weight, labels).total / labels.numel()


def _measure(
    name: str, contender: MeanLoss, sizes: tuple[int, int, int], device: str
) -> Measurement:
    inputs = _draw(*sizes, device)
    error = _error(contender, inputs)

    def call() -> tuple[Tensor, ...]:
        return _gradients(contender, inputs)

    call()  # compiles, and fills the allocator
    peak = None
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        resident = torch.cuda.memory_allocated()
        call()
        peak = (torch.cuda.max_memory_allocated() - resident) / 2**30
    return Measurement(name, measure(call, device, BUDGET_MS).ms, peak, error)


def _draw(tokens: int, dim: int, vocab: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, weight and labels; logits are about of a trained model's size."""
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, dim, device=device, generator=generator)
    weight = torch.randn(vocab, dim, device=device, generator=generator).mul_(2 * dim**-0.5)
    labels = torch.randint(vocab, (tokens,), device=device, generator=generator)
    narrow = (tensor.bfloat16().requires_grad_() for tensor in (hidden, weight))
    return (*narrow, labels)


def _gradients(contender: MeanLoss, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the loss and the gradients of hidden states and weight."""
    hidden, weight, labels = inputs
    loss = contender(hidden, weight, labels)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def _error(contender: MeanLoss, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    hidden, weight, labels = inputs
    few = hidden[:JUDGED_TOKENS].detach().requires_grad_(), weight, labels[:JUDGED_TOKENS]
    found = _gradients(contender, few)
    wide = [tensor.detach().double().requires_grad_() for tensor in few[:2]]
    exact = _gradients(_whole, (*wide, few[2]))
    pairs = zip(found, exact, strict=True)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)


def _print_table(found: Sequence[Measurement]) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("loss and both gradients")
    for heading in ("ms", "peak GiB", "error"):
        table.add_column(heading, justify="right")
    for line in found:
        peak = "-" if line.peak_gib is None else f"{line.peak_gib:.1f}"
        table.add_row(line.contender, f"{line.ms:.1f}", peak, f"{line.error:.1e}")
    print_table(table, 100)
