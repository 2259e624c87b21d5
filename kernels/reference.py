"""The operators in plain PyTorch: the path on CPU, and the oracle of every faster path."""

import torch
from torch import Tensor


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def poly_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """Apply PolyNorm over the last dimension.

    Equation: y = w0 N(x^3) + w1 N(x^2) + w2 N(x) + b,  N(z) = z / sqrt(mean(z^2) + eps)
              (Motif 2 12.7B technical report, https://arxiv.org/abs/2511.07464; PolyCom,
              https://arxiv.org/abs/2411.03884)
    Shapes:   x (..., width) floating; weight (3,); bias (1,) -> like x, in x's dtype
    Computed: in float32 (float64 for float64 inputs), with one cast at the end
    """
    return _poly_norm_wide(x, poly_norm_power_sums(x), x.shape[-1], weight, bias, eps).to(x.dtype)


def poly_norm_mul(x: Tensor, up: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """Return PolyNorm(x) * up: the product is taken before the one cast to x's dtype.

    Shapes: x, up (..., width); weight (3,); bias (1,) -> like x
    """
    sums = poly_norm_power_sums(x)
    return poly_norm_mul_given_sums(x, up, sums, x.shape[-1], weight, bias, eps)


def poly_norm_power_sums(x: Tensor) -> Tensor:
    """Return what PolyNorm has to know of a row: the sums of x^6, x^4 and x^2.

    Sums of parts of a row add up to those of the row, so that a row may be cut over ranks.

    Shapes: x (..., width) -> (..., 3), float32 (float64 for float64 inputs)
    """
    square = x.to(_accumulation_dtype(x)).square()
    return torch.stack(((square**3).sum(-1), square.square().sum(-1), square.sum(-1)), dim=-1)


def poly_norm_mul_given_sums(
    x: Tensor,  # (..., part of the width)
    up: Tensor,  # like x
    power_sums: Tensor,  # (..., 3), of whole rows
    width: int,
    weight: Tensor,  # (3,)
    bias: Tensor,  # (1,)
    eps: float = 1e-6,
) -> Tensor:  # like x
    """Return PolyNorm(x) * up on a part of the columns; `width` is that of whole rows."""
    wide = _poly_norm_wide(x, power_sums, width, weight, bias, eps)
    return (wide * up.to(wide.dtype)).to(x.dtype)


def _poly_norm_wide(
    x: Tensor, power_sums: Tensor, width: int, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """PolyNorm before its cast to x's dtype."""
    dtype = _accumulation_dtype(x)
    wide = x.to(dtype)
    scales = weight.to(dtype) * torch.rsqrt(power_sums / width + eps)  # (..., 3)
    cubic, quadratic, linear = scales.unsqueeze(-2).unbind(-1)  # each (..., 1)
    return ((cubic * wide + quadratic) * wide + linear) * wide + bias.to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension to a root mean square of one, times `weight`.

    Equation: y = x / sqrt(mean(x^2) + eps) * weight   (https://arxiv.org/abs/1910.07467)
    Shapes:   x (..., width); weight (width,) -> like x, in x's dtype
    """
    dtype = _accumulation_dtype(x)
    wide = x.to(dtype)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.to(dtype)).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(x + residual), x + residual); the sum is rounded to x's dtype first.

    Shapes: x, residual (..., width); weight (width,) -> both like x
    """
    total = x + residual
    return rms_norm(total, weight, eps), total


def symmetric_product(
    a: Tensor,
    b: Tensor,
    addend: Tensor | None,
    second: Tensor | None,
    alpha: float,
    beta: float,
    delta: float,
    gamma: float,
) -> Tensor:
    """Return alpha a b^T + beta addend + delta second + gamma I.

    Shapes: a, b (..., m, k); addend, second (..., m, m)
    """
    left, right = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]).mT
    square = (*a.shape[:-1], a.shape[-2])
    if addend is None:
        out = left @ right if alpha == 1 else alpha * (left @ right)
    else:
        flat = addend.reshape(-1, *addend.shape[-2:])
        out = torch.baddbmm(flat, left, right, beta=beta, alpha=alpha)  # rounded once
    out = out.view(square)
    if second is not None:
        out = out + delta * second
    if gamma:
        out = out + gamma * torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)
    return out


def cast_scaled(x: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return each matrix of x (..., rows, columns) times its scale (..., 1, 1), cast to dtype."""
    if scales is None:
        return x.to(dtype)
    return (x.to(torch.promote_types(x.dtype, scales.dtype)) * scales).to(dtype)
