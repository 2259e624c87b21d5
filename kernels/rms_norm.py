"""Root-mean-square norm, alone and after an addition: Triton kernels, operators, public calls.

    y = x r w,   r = (mean(x^2) + eps)^(-1/2)        (https://arxiv.org/abs/1910.07467)

With g the gradient of y and n the width:

    dx = r w g - x r^3 sum(w g x) / n,   dw = sum over rows of g x r

`add_rms_norm` takes x + residual in place of x and returns that sum too, so that a block's residual
stream is written and normalised in one pass. Nothing is kept but the input (the sum): r is computed
again. Floor, in transfers of the activation: 2 forward, 3 backward; with the addition 4 and 4.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from titan_motif.kernels import reference
from titan_motif.kernels.launch import (
    Implementation,
    Tiling,
    can_use_ptx,
    check_rows,
    column_block,
    contiguous_like,
    num_rows,
    runs_triton,
)

# ---- kernels. A tile holds whole rows; backward, a program walks over tiles and loads ahead.


@triton.jit
def _rms_norm_forward_kernel(
    x_ptr,  # (num_rows, width)
    residual_ptr,  # like x
    weight_ptr,  # (width,)
    out_ptr,  # like x
    sum_ptr,  # like x
    num_rows,
    width,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)[None, :]
    mask = (rows[:, None] < num_rows) & (columns < width)
    offsets = rows[:, None].to(tl.int64) * width + columns
    weight = tl.load(weight_ptr + columns, columns < width, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + offsets, mask, other=0.0)
        # The norm sees what the residual stream will hold: the rounded sum.
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + offsets, x, mask)
    x = x.to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)[:, None]
    tl.store(out_ptr + offsets, (x * r * weight).to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _rms_norm_forward_chunks_kernel(
    x_ptr,  # (num_rows, width)
    weight_ptr,  # (width,)
    out_ptr,  # like x
    eps,
    WIDTH: tl.constexpr,  # known to the compiler: with loops over a number 130 us became 150
    CHUNK: tl.constexpr,
):
    """A row a program, in chunks, read twice: the second time from the core's own cache."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    squares = tl.zeros([CHUNK], tl.float32)
    for start in range(0, WIDTH, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        mask = columns < WIDTH
        x = tl.load(x_ptr + row + columns, mask, other=0.0, eviction_policy="evict_last")
        squares += x.to(tl.float32) * x.to(tl.float32)
    r = tl.rsqrt(tl.sum(squares) / WIDTH + eps)
    for start in range(0, WIDTH, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        mask = columns < WIDTH
        x = tl.load(x_ptr + row + columns, mask, other=0.0, eviction_policy="evict_first")
        weight = tl.load(weight_ptr + columns, mask, other=0.0, eviction_policy="evict_last")
        y = x.to(tl.float32) * r * weight.to(tl.float32)
        tl.store(out_ptr + row + columns, y.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _opaque(packed):
    """Return values of 16 bits by a move that the compiler cannot see through."""
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [packed], dtype=packed.dtype, is_pure=False, pack=2
    )


@triton.jit
def _rms_norm_backward_kernel(
    dout_ptr,  # (num_rows, width)
    dsum_ptr,  # like dout
    x_ptr,  # like dout; the sum, where there was a residual
    weight_ptr,  # (width,)
    dx_ptr,  # like dout
    partials_ptr,  # (programs, width) float32: a program's part of dw
    num_rows,
    width,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    IS_TIGHT: tl.constexpr,  # x and dout, of 16 bits, and the weight do not fit beside dw
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)[None, :]
    # Always 0, but not to the compiler, which would keep what it read once.
    hidden_zero = tl.zeros([ROWS], tl.int32)
    weight = tl.load(weight_ptr + columns, columns < width, other=0.0).to(tl.float32)
    dweight = tl.zeros([ROWS, COLUMNS], tl.float32)
    num_tiles = tl.cdiv(num_rows, ROWS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=STAGES):
        rows = tile * ROWS + tl.arange(0, ROWS)
        mask = (rows[:, None] < num_rows) & (columns < width)
        offsets = rows[:, None].to(tl.int64) * width + columns
        x = tl.load(x_ptr + offsets, mask, other=0.0)
        g = tl.load(dout_ptr + offsets, mask, other=0.0)
        if HAS_RESIDUAL:
            dsum = tl.load(dsum_ptr + offsets, mask, other=0.0)
        packed_x = x
        packed_g = g
        if IS_TIGHT:
            again = tl.multiple_of(hidden_zero[:, None] * 16, [1, 16]) + columns
            weight = tl.load(weight_ptr + again, columns < width, other=0.0).to(tl.float32)
        x = x.to(tl.float32)
        g = g.to(tl.float32)
        wg = g * weight
        if ROWS == 1:  # barriers between warps are what a reduction costs: one for both sums
            square, product = tl.split(tl.sum(tl.join(x * x, wg * x), axis=1))
        else:
            square = tl.sum(x * x, axis=1)
            product = tl.sum(wg * x, axis=1)
        r = tl.rsqrt(square / width + eps)
        if IS_TIGHT:
            hidden_zero = (r < 0).to(tl.int32)
            again = tl.multiple_of(hidden_zero[:, None] * 16, [1, 16]) + columns
            if not HAS_RESIDUAL:  # with an addition x may stay: 2059 us for 2104 at 16384 columns
                x = _opaque(packed_x).to(tl.float32)
            g = _opaque(packed_g).to(tl.float32)
            weight = tl.load(weight_ptr + again, columns < width, other=0.0).to(tl.float32)
            wg = g * weight
        dweight += g * (x * r[:, None])
        # r x before r^2, and r times the sum before it too: no power of r alone leaves float32.
        dx = r[:, None] * (wg - (x * r[:, None]) * (r * product / width)[:, None])
        if HAS_RESIDUAL:
            dx += dsum.to(tl.float32)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask)
    column = tl.arange(0, COLUMNS)
    partials_ptr += tl.program_id(0).to(tl.int64) * width
    tl.store(partials_ptr + column, tl.sum(dweight, axis=0), column < width)


# ---- launchers


# What was fastest, or within 3% of it, on an H200 (torch 2.11, triton 3.6), bfloat16, microseconds
# at 65,536 tokens. Fractions of a device copy's bandwidth at 4096 columns: forward 0.97, with the
# addition 0.96, backward 0.95 and 0.99; at 2M x 256: 1.00 and 0.98, 0.99 and 1.00.


def _forward_tiling(x: Tensor) -> Tiling:
    return Tiling.of(x, 32)


_CHUNK = 8192
"""Columns that the forward pass without an addition reads at a time, where rows are cut."""


def _chunk_warps(x: Tensor) -> int | None:
    """Return the warps of a program that cuts a row into chunks; None where a tile holds it better.

    16 / 32 warps, on an H100: 5120 columns 441 / 460, 8192 710 / 721, 13824 1194 / 1187, 16384
    1421 / 1407 (torch.compile 1408). Chunks of 2048 columns and 8 warps: 447, 757, 1300, 1591. The
    whole row in a tile, on an H200: 382, 519, 1278, 1381, where chunks took 361, 499, 850, 1036.
    """
    width = x.shape[-1]
    if width <= 4096:
        return None
    return 16 if width <= 8192 else 32


def _backward_tiling(x: Tensor) -> Tiling:
    columns = column_block(x)
    if columns < 2048:  # a tile for a warp: no sum leaves it
        return Tiling.of(x, 32, min_warps=1, programs_per_core=8, stages=3)
    if _is_tight(x):
        # Nothing ahead: shared memory takes from the cache that serves the weight. At 16384 columns
        # (1736 us) one row ahead, or two, spilled: 3,000 and 8,300.
        return Tiling.of(x, 32, programs_per_core=1, max_registers=128)
    if columns < 4096 or x.element_size() > 2:
        return Tiling.of(x, 32, programs_per_core=2, stages=3)
    # One program and three rows ahead, for two programs and two: at 5120 columns 493 us for 574, at
    # 4096 403 for 403 and with the addition 511 for 522, at 8192 789 for 787.
    return Tiling.of(x, 16, programs_per_core=1, stages=4)


def _is_tight(x: Tensor) -> bool:
    """Return whether rows of x (..., width) fill the registers of a multiprocessor.

    x and the output's gradient then wait for their sums in 16 bits, and the weight is read again
    when they are there: 128 registers hold 32 elements of all that, where 336 bytes were spilled.
    At 16384 columns 1736 us for 8,313.
    """
    return can_use_ptx(x) and x.element_size() == 2 and column_block(x) >= 16384


def _forward(
    x: Tensor,  # (..., width)
    residual: Tensor | None,  # like x
    weight: Tensor,  # (width,)
    eps: float,
) -> tuple[Tensor, Tensor]:  # like x; the sum like x, empty without a residual
    out = contiguous_like(x)
    total = x.new_empty(0) if residual is None else contiguous_like(x)
    if x.numel() == 0:
        return out, total
    x = x.contiguous()
    num_warps = _chunk_warps(x) if residual is None else None
    if num_warps is not None:
        with torch.cuda.device_of(x):
            _rms_norm_forward_chunks_kernel[(num_rows(x),)](
                x,
                weight.contiguous(),
                out,
                eps,
                WIDTH=x.shape[-1],
                CHUNK=_CHUNK,
                num_warps=num_warps,
            )
        return out, total
    tiling = _forward_tiling(x)
    with torch.cuda.device_of(x):
        _rms_norm_forward_kernel[tiling.grid(x)](
            x,
            x if residual is None else residual.contiguous(),
            weight.contiguous(),
            out,
            total,
            num_rows(x),
            x.shape[-1],
            eps,
            HAS_RESIDUAL=residual is not None,
            **tiling.options(x),
        )
    return out, total


@torch.library.custom_op("titan_motif::rms_norm_backward", mutates_args=())
def _backward(
    dout: Tensor, dsum: Tensor | None, x: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return dx and, in weight's dtype, dw; x is the sum where there was a residual."""
    dx = contiguous_like(x)
    if x.numel() == 0:
        return dx, torch.zeros_like(weight)
    x = x.contiguous()
    tiling = _backward_tiling(x)
    grid = tiling.grid(x)
    partials = x.new_empty((*grid, x.shape[-1]), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _rms_norm_backward_kernel[grid](
            dout.contiguous(),
            x if dsum is None else dsum.contiguous(),
            x,
            weight.contiguous(),
            dx,
            partials,
            num_rows(x),
            x.shape[-1],
            eps,
            HAS_RESIDUAL=dsum is not None,
            IS_TIGHT=_is_tight(x),
            **tiling.options(x, num_inputs=2 if dsum is None else 3),
        )
    # A grid of one size sums in one order: the same bits on every run.
    return dx, partials.sum(0).to(weight.dtype)


@_backward.register_fake
def _(dout, dsum, x, weight, eps):
    return contiguous_like(x), contiguous_like(weight)


# ---- operators


@torch.library.custom_op("titan_motif::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _forward(x, None, weight, eps)[0]


@_rms_norm.register_fake
def _(x, weight, eps):
    return contiguous_like(x)


@torch.library.custom_op("titan_motif::add_rms_norm", mutates_args=())
def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _forward(x, residual, weight, eps)


@_add_rms_norm.register_fake
def _(x, residual, weight, eps):
    return contiguous_like(x), contiguous_like(x)


def _save_rms_norm(ctx, inputs, output):
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm_gradients(ctx, dout):
    x, weight = ctx.saved_tensors
    return *_backward(dout, None, x, weight, ctx.eps), None


def _save_add_rms_norm(ctx, inputs, output):
    _, _, weight, ctx.eps = inputs
    ctx.save_for_backward(output[1], weight)


def _add_rms_norm_gradients(ctx, dout, dsum):
    total, weight = ctx.saved_tensors
    dx, dweight = _backward(dout, dsum, total, weight, ctx.eps)
    return dx, dx, dweight, None


_rms_norm.register_autograd(_rms_norm_gradients, setup_context=_save_rms_norm)
_add_rms_norm.register_autograd(_add_rms_norm_gradients, setup_context=_save_add_rms_norm)


# ---- public calls


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, implementation: Implementation = "auto"
) -> Tensor:
    """Normalise the last dimension to a root mean square of one, times `weight`.

    Equation: y = x / sqrt(mean(x^2) + eps) * weight   (https://arxiv.org/abs/1910.07467)
    Shapes:   x (..., width); weight (width,) of any dtype -> like x, in x's dtype
    Computed: in float32 (float64 for float64 inputs), with one cast at the end
    Raises:   ValueError for other shapes, and as `runs_triton` says
    """
    _check(x, None, weight, eps)
    if runs_triton(x, implementation):
        return _rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(x + residual), x + residual); the sum is rounded to x's dtype first.

    Shapes: x, residual (..., width), of one dtype; weight (width,) -> both like x
    Raises: ValueError for other shapes, and as `runs_triton` says
    """
    _check(x, residual, weight, eps)
    if runs_triton(x, implementation):
        return _add_rms_norm(x, residual, weight, eps)
    return reference.add_rms_norm(x, residual, weight, eps)


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> None:
    check_rows(x, eps)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight is {tuple(weight.shape)}; ({x.shape[-1]},) is needed")
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"residual is {residual.dtype} {tuple(residual.shape)}; "
            f"x's {x.dtype} {tuple(x.shape)} is needed"
        )
