"""The comparison that the benchmarks of PolyNorm and RMSNorm share.

Every operator is run forward and backward by each contender: PyTorch as written ("eager"), the
same compiled, Liger-Kernel where it is installed, and ours. Bytes are the fewest that the operator
has to move: each activation that it reads or writes, once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from titan_motif.bench import liger
from titan_motif.bench.frame import print_table, write_figures
from titan_motif.bench.measure import copy_gb_per_second, measure
from titan_motif.kernels.launch import MAX_COLUMNS
from titan_motif.study.machine import CPU_NOTE, choose_device, told_machine

EPS = 1e-6
JUDGED_ROWS = 256
"""Rows whose results are compared with float64: the first half of them, and the last."""

Operator = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Subject:
    """An operator to be measured."""

    name: str
    activations: tuple[str, ...]
    """Names of the inputs that have a row for each token."""
    num_outputs: int
    parameters: Callable[[int], list[Tensor]]
    """From the width to the other inputs, float64."""
    plain: Operator
    """The formula in PyTorch, with float32 inside and one cast at the end."""
    ours: Operator
    forward_transfers: int
    backward_transfers: int
    """Activations read and written, at the fewest."""

    def contenders(self) -> dict[str, Operator]:
        """Return what is timed, by name; other libraries' where they are installed."""
        found = {"eager": self.plain, "torch.compile": torch.compile(self.plain, dynamic=False)}
        if self.name in (theirs := liger.operators(EPS)):
            found["Liger-Kernel"] = theirs[self.name]
        return found | {"ours": self.ours}


@dataclass(frozen=True)
class Measurement:
    """One line of the table."""

    operator: str
    direction: str
    contender: str
    width: int
    tokens: int
    ms: float
    host_us: float
    gb_per_second: float
    fraction_of_copy: float
    error: float
    """Relative norm of the error against float64, the largest over outputs or gradients."""


@dataclass
class NormOptions:
    """What the benchmarks of norms have in common."""

    widths: tuple[int, ...] = ()
    """Columns of the activation; none means those of the 12.7B model, on a CPU 512."""
    tokens: tuple[int, ...] = ()
    """Rows of the activation; none means as many as fill a GPU, on a CPU 64."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the activations; parameters are float32."""
    json: Path | None = None
    """Write the figures to this file."""


def compare(subjects: Sequence[Subject], options: NormOptions, gpu_shape: tuple[int, int]) -> None:
    """Measure, print the table, and write it to a file if one is named.

    Args:
        gpu_shape: the (tokens, width) that are measured on a GPU where the options name none
    """
    device = choose_device()
    default_tokens, default_width = gpu_shape if device == "cuda" else (64, 512)
    widths, tokens = options.widths or (default_width,), options.tokens or (default_tokens,)
    _check(widths, tokens)
    dtype = options.dtype
    copy = copy_gb_per_second(device)
    cases = [(s, w, t) for s in subjects for w in widths for t in tokens]
    console = Console(stderr=True)
    found: list[Measurement] = []
    for subject, width, num_tokens in track(cases, "measuring", console=console, transient=True):
        found += _measure(subject, width, num_tokens, getattr(torch, dtype), device, copy)
    if device == "cpu":
        print(CPU_NOTE)
    print(f"{told_machine(device)}, {dtype}; a copy moves {copy:,.0f} GB/s")
    if not liger.IS_INSTALLED:
        print("Liger-Kernel is not installed: pip install --no-deps liger-kernel==0.8.5")
    _print_table(found)
    write_figures(options.json, device, found, dtype=dtype, copy_gb_per_second=copy)


def _check(widths: Sequence[int], tokens: Sequence[int]) -> None:
    """Raise ValueError for what would fail only after minutes."""
    for name, sizes in (("widths", widths), ("tokens", tokens)):
        if min(sizes) < 1:
            raise ValueError(f"--{name} has {min(sizes)}; positive numbers are needed")
    if max(widths) > MAX_COLUMNS:
        raise ValueError(f"--widths has {max(widths)}; at most {MAX_COLUMNS} is allowed")


def _measure(
    subject: Subject, width: int, tokens: int, dtype: torch.dtype, device: str, copy: float
) -> Iterator[Measurement]:
    generator = torch.Generator(device).manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(tokens, width, device=device, generator=generator).to(dtype)

    activations = [draw().requires_grad_() for _ in subject.activations]
    wide_parameters = [parameter.to(device) for parameter in subject.parameters(width)]
    parameters = [p.to(torch.float32).requires_grad_() for p in wide_parameters]
    inputs, douts = [*activations, *parameters], [draw() for _ in range(subject.num_outputs)]
    exact = _exact(subject, inputs, douts)
    # A function compiled for many shapes would stop compiling at a limit.
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # a backward pass is called many times
    for contender, operator in subject.contenders().items():
        outputs = _as_tuple(operator(*inputs))
        gradients = _gradients(outputs, inputs, [_judged(dout) for dout in douts])
        judged = [*outputs, *gradients]
        errors = [_error(a, b) for a, b in zip(judged, exact, strict=True)]
        num_outputs = subject.num_outputs
        for direction, function, transfers, error in (
            (
                "forward",
                lambda op=operator: op(*inputs),
                subject.forward_transfers,
                max(errors[:num_outputs]),
            ),
            (
                "backward",
                lambda outputs=outputs: _gradients(outputs, inputs, douts),
                subject.backward_transfers,
                max(errors[num_outputs:]),
            ),
        ):
            timing = measure(function, device)
            speed = transfers * tokens * width * dtype.itemsize / timing.ms / 1e6
            line = (subject.name, direction, contender, width, tokens)
            yield Measurement(*line, *timing, speed, speed / copy, error)


def _exact(subject: Subject, inputs: list[Tensor], douts: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients of the judged rows, in float64."""
    num_activations = len(subject.activations)
    wide = [_judged_rows(t.detach()).double() for t in inputs[:num_activations]]
    wide += [t.detach().double() for t in inputs[num_activations:]]
    wide = [tensor.requires_grad_() for tensor in wide]
    outputs = _as_tuple(subject.plain(*wide))
    return [*outputs, *_gradients(outputs, wide, [_judged_rows(d).double() for d in douts])]


def _judged(dout: Tensor) -> Tensor:
    """The gradient of the judged rows alone, so that the parameters' gradients are theirs too."""
    alone = torch.zeros_like(dout)
    half = JUDGED_ROWS // 2
    alone[:half], alone[-half:] = dout[:half], dout[-half:]
    return alone


def _judged_rows(activation: Tensor) -> Tensor:
    if len(activation) <= JUDGED_ROWS:
        return activation
    half = JUDGED_ROWS // 2
    return torch.cat((activation[:half], activation[-half:]))


def _error(found: Tensor, exact: Tensor) -> float:
    judged = found.detach() if found.shape == exact.shape else _judged_rows(found.detach())
    return ((judged.double() - exact).norm() / exact.norm()).item()


def _gradients(outputs, inputs: list[Tensor], douts: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs, douts, retain_graph=True)


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _print_table(measurements: Sequence[Measurement]) -> None:
    table = Table(box=None, header_style="bold")
    for heading in ("operator", "direction", "tokens x width", "contender"):
        table.add_column(heading)
    for heading in ("ms", "GB/s", "of copy", "host us", "error"):
        table.add_column(heading, justify="right")
    for line in measurements:
        table.add_row(
            line.operator,
            line.direction,
            f"{line.tokens} x {line.width}",
            line.contender,
            f"{line.ms:.4f}",
            f"{line.gb_per_second:,.0f}",
            f"{line.fraction_of_copy:.3f}",
            f"{line.host_us:.0f}",
            f"{line.error:.1e}",
        )
    print_table(table, 110)
