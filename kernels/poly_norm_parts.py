"""PolyNorm on parts of rows, for rows that are cut over ranks.

`poly_norm_power_sums` gives the three sums of a part, the caller adds up those of all ranks, and
`poly_norm_mul_given_sums` applies them. Gradients go the same way back: through the sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from titan_motif.kernels import reference
from titan_motif.kernels.launch import Implementation, contiguous_like, num_rows, runs_triton
from titan_motif.kernels.poly_norm import (
    backward,
    check_inputs,
    empty_sums,
    forward_tiling,
    launch_forward,
    load_sums,
    parameter_gradients,
    store_sums,
    sum_four,
)


@triton.jit
def _poly_norm_power_sums_kernel(
    x_ptr,  # (num_rows, num_columns)
    sums_ptr,  # (num_rows, 3) float32
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)[None, :]
    row_mask = rows < num_rows
    mask = row_mask[:, None] & (columns < num_columns)
    offsets = rows[:, None].to(tl.int64) * num_columns + columns
    x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
    square = x * x
    fourth = square * square
    s3, s2, s1, _ = sum_four(fourth * square, fourth, square, square)
    store_sums(sums_ptr, rows, row_mask, s3, s2, s1)


@triton.jit
def _poly_norm_power_sums_backward_kernel(
    dsums_ptr,  # (num_rows, 3) float32
    x_ptr,  # (num_rows, num_columns)
    dx_ptr,  # like x
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)[None, :]
    row_mask = rows < num_rows
    mask = row_mask[:, None] & (columns < num_columns)
    offsets = rows[:, None].to(tl.int64) * num_columns + columns
    x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
    d3, d2, d1 = load_sums(dsums_ptr, rows, row_mask)
    square = x * x
    dx = x * ((6 * d3[:, None] * square + 4 * d2[:, None]) * square + 2 * d1[:, None])
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask)


@torch.library.custom_op("titan_motif::poly_norm_mul_given_sums", mutates_args=())
def _poly_norm_mul_given_sums(
    x: Tensor, up: Tensor, sums: Tensor, weight: Tensor, bias: Tensor, width: int, eps: float
) -> Tensor:
    return launch_forward(x, up, sums, weight, bias, width, eps)[0]


@_poly_norm_mul_given_sums.register_fake
def _(x, up, sums, weight, bias, width, eps):
    return contiguous_like(x)


@torch.library.custom_op("titan_motif::poly_norm_power_sums", mutates_args=())
def _power_sums(x: Tensor) -> Tensor:
    sums = empty_sums(x)
    if x.numel() == 0:
        return sums.zero_()  # a part of a row may be empty
    x = x.contiguous()
    tiling = forward_tiling(x)
    with torch.cuda.device_of(x):
        _poly_norm_power_sums_kernel[tiling.grid(x)](
            x, sums, num_rows(x), x.shape[-1], **tiling.options(x)
        )
    return sums


@_power_sums.register_fake
def _(x):
    return empty_sums(x)


@torch.library.custom_op("titan_motif::poly_norm_power_sums_backward", mutates_args=())
def _power_sums_backward(dsums: Tensor, x: Tensor) -> Tensor:
    dx = contiguous_like(x)
    if x.numel() == 0:
        return dx
    x = x.contiguous()
    tiling = forward_tiling(x)
    with torch.cuda.device_of(x):
        _poly_norm_power_sums_backward_kernel[tiling.grid(x)](
            dsums.contiguous(),
            x,
            dx,
            num_rows(x),
            x.shape[-1],
            **tiling.options(x),
        )
    return dx


@_power_sums_backward.register_fake
def _(dsums, x):
    return contiguous_like(x)


def _save_given_sums(ctx, inputs, output):
    x, up, sums, weight, bias, ctx.width, ctx.eps = inputs
    ctx.save_for_backward(x, up, sums, weight, bias)


def _given_sums_gradients(ctx, dout):
    x, up, sums, weight, bias = ctx.saved_tensors
    dx, dup, dsums, dparameters = backward(
        dout, x, up, sums, weight, bias, ctx.width, ctx.eps, True
    )
    return dx, dup, dsums, *parameter_gradients(dparameters, weight, bias), None, None


def _save_power_sums(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _power_sums_gradients(ctx, dsums):
    return _power_sums_backward(dsums, *ctx.saved_tensors)


_poly_norm_mul_given_sums.register_autograd(_given_sums_gradients, setup_context=_save_given_sums)
_power_sums.register_autograd(_power_sums_gradients, setup_context=_save_power_sums)


def poly_norm_power_sums(x: Tensor, implementation: Implementation = "auto") -> Tensor:
    """Return what PolyNorm has to know of a row: the sums of x^6, x^4 and x^2.

    Sums of parts of a row add up to those of the row, so that a row may be cut over ranks.

    Shapes: x (..., part of the width) -> (..., 3), float32 (float64 for float64 inputs)
    """
    if runs_triton(x, implementation):
        return _power_sums(x)
    return reference.poly_norm_power_sums(x)


def poly_norm_mul_given_sums(
    x: Tensor,  # (..., part of the width)
    up: Tensor,  # like x
    power_sums: Tensor,  # (..., 3), of whole rows
    width: int,
    weight: Tensor,  # (3,)
    bias: Tensor,  # (1,)
    eps: float = 1e-6,
    implementation: Implementation = "auto",
) -> Tensor:  # like x
    """Return PolyNorm(x) * up on a part of the columns; `width` is that of whole rows."""
    check_inputs(x, up, weight, bias, eps)
    if power_sums.shape != (*x.shape[:-1], 3):
        needed = (*x.shape[:-1], 3)
        raise ValueError(f"power_sums is {tuple(power_sums.shape)}; {needed} is needed")
    if runs_triton(x, implementation):
        return _poly_norm_mul_given_sums(x, up, power_sums, weight, bias, width, eps)
    return reference.poly_norm_mul_given_sums(x, up, power_sums, width, weight, bias, eps)
