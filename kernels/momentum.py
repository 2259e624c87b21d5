"""The element-wise ends of a Muon step: momentum before the exchange, the update after it.

    B <- mu B + G,   out = G + mu B (Nesterov) or B
    W <- (1 - decay) W - rate U

Both obey a flag on the device, go: where it is 0.0 nothing changes, whatever is in G. As separate
operations they would move 23 and 8 elements of 4 bytes where 4 and 3 have to move.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from titan_motif.kernels.launch import Implementation, runs_triton

_BLOCK = 2048


@triton.jit
def _momentum_kernel(
    momentum_ptr,  # (size,)
    gradient_ptr,  # (size,)
    out_ptr,  # (size,)
    go_ptr,  # ()
    size,
    mu,
    HAS_GRADIENT: tl.constexpr,
    HAS_OUT: tl.constexpr,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    go = tl.load(go_ptr) > 0
    old = tl.load(momentum_ptr + offsets, mask, other=0.0).to(tl.float32)
    momentum = tl.where(go, mu * old, old)
    gradient = tl.zeros([BLOCK], tl.float32)
    if HAS_GRADIENT:
        gradient = tl.load(gradient_ptr + offsets, mask, other=0.0).to(tl.float32)
        gradient = tl.where(go, gradient, 0.0)  # not times go: 0 times NaN is NaN
        momentum += gradient
    tl.store(momentum_ptr + offsets, momentum.to(momentum_ptr.dtype.element_ty), mask)
    if HAS_OUT:
        out = gradient + mu * momentum if NESTEROV else momentum
        tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _momentum_update_kernel(
    parameter_ptr,  # (size,)
    update_ptr,  # (size,)
    go_ptr,  # ()
    size,
    decay,
    rate,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    if tl.load(go_ptr) > 0:
        parameter = tl.load(parameter_ptr + offsets, mask, other=0.0).to(tl.float32)
        update = tl.load(update_ptr + offsets, mask, other=0.0).to(tl.float32)
        parameter = parameter - decay * parameter - rate * update
        tl.store(parameter_ptr + offsets, parameter.to(parameter_ptr.dtype.element_ty), mask)


def advance_momentum(
    momentum: Tensor,
    gradient: Tensor | None,
    out: Tensor | None,
    go: Tensor,
    mu: float,
    nesterov: bool,
    implementation: Implementation = "auto",
) -> None:
    """Take a gradient into the momentum, in place, and write what is to be orthogonalised.

    Equation: B <- mu B + G;  out = G + mu B if nesterov, else B
    Shapes:   momentum, gradient, out of one shape, contiguous, of any floating dtypes; go (),
              0.0 or 1.0: with 0.0 the momentum stays, and the gradient counts as zero
    Args:     gradient None is zero; out None is not written
    """
    if momentum.numel() == 0:
        return
    if not runs_triton(momentum.view(-1)[:1], implementation):
        _plain_momentum(momentum, gradient, out, go, mu, nesterov)
        return
    _check_contiguous(momentum, gradient, out)
    size = momentum.numel()
    with torch.cuda.device_of(momentum):
        _momentum_kernel[(triton.cdiv(size, _BLOCK),)](
            momentum,
            momentum if gradient is None else gradient,
            momentum if out is None else out,
            go,
            size,
            mu,
            HAS_GRADIENT=gradient is not None,
            HAS_OUT=out is not None,
            NESTEROV=nesterov,
            BLOCK=_BLOCK,
        )


def apply_update(
    parameter: Tensor,
    update: Tensor,
    go: Tensor,
    decay: float,
    rate: float,
    implementation: Implementation = "auto",
) -> None:
    """Decay a parameter and take an update off it, in place.

    Equation: W <- (1 - decay) W - rate U
    Shapes:   parameter, update of one shape, contiguous, of any floating dtypes; go (), 0.0 or 1.0:
              with 0.0 nothing changes
    """
    if parameter.numel() == 0:
        return
    if not runs_triton(parameter.view(-1)[:1], implementation):
        step = torch.where(go > 0, update, 0.0).to(parameter.dtype)
        parameter.mul_((1.0 - decay * go).to(parameter.dtype)).add_(step, alpha=-rate)
        return
    _check_contiguous(parameter, update)
    size = parameter.numel()
    with torch.cuda.device_of(parameter):
        _momentum_update_kernel[(triton.cdiv(size, _BLOCK),)](
            parameter, update, go, size, decay, rate, BLOCK=_BLOCK
        )


def _plain_momentum(
    momentum: Tensor,
    gradient: Tensor | None,
    out: Tensor | None,
    go: Tensor,
    mu: float,
    nesterov: bool,
) -> None:
    momentum.mul_(torch.where(go > 0, mu, 1.0).to(momentum.dtype))
    if gradient is not None:
        gradient = torch.where(go > 0, gradient, 0.0)  # not times go: 0 times NaN is NaN
        momentum.add_(gradient)
    if out is None:
        return
    if not nesterov:
        out.copy_(momentum)
    elif gradient is None:
        out.copy_(momentum * mu)
    else:
        out.copy_(gradient.add_(momentum, alpha=mu))


def _check_contiguous(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is None or tensor.is_contiguous()
