"""Random inputs, and how far an operator and its gradients are from float64."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from titan_motif.kernels.launch import IS_INTERPRETED

BOUNDS = {
    torch.float32: 2e-6,
    # Triton's interpreter cuts float32 to bfloat16 where a GPU rounds: twice the error.
    torch.bfloat16: 8e-3 if IS_INTERPRETED else 4e-3,
    torch.float16: 1e-3,
}
"""Relative norm of the error: float32's own, and one rounding of the result for the others."""


def draw(*shape: int, device: str, dtype=torch.float32, scale: float = 1.0, seed: int) -> Tensor:
    """Normal values around 0.5: sums over rows then do not cancel, so that errors are relative."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.5
    return (scale * values).to(dtype).to(device)


def relative_error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    difference = (found.double() - exact).norm()
    return (difference / exact.norm()).item() if exact.norm() else difference.item()


def with_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    out_gradients: Sequence[Tensor],
) -> list[Tensor]:
    """Return the outputs, then the gradient of each input."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = torch.autograd.grad(outputs, inputs, out_gradients)
    return [*(out.detach() for out in outputs), *gradients]


def errors(fast, reference, inputs: Sequence[Tensor], out_gradients: Sequence[Tensor]):
    """Return the relative error of each output and gradient of `fast` against float64."""
    found = with_gradients(fast, inputs, out_gradients)
    wide_inputs = [tensor.double() for tensor in inputs]
    exact = with_gradients(reference, wide_inputs, [g.double() for g in out_gradients])
    for tensor, given in zip(found[len(out_gradients) :], inputs, strict=True):
        assert tensor.dtype == given.dtype
    return [relative_error(a, b) for a, b in zip(found, exact, strict=True)]


class Launches:
    """Stands in a module for a Triton kernel, and counts its launches."""

    def __init__(self, monkeypatch, module, name: str) -> None:
        self.kernel, self.count = getattr(module, name), 0
        monkeypatch.setattr(module, name, self)

    def __getitem__(self, grid):
        self.count += 1
        return self.kernel[grid]
