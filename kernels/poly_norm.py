"""PolyNorm, alone and times the up projection: Triton kernels, their operators, the public calls.

    y = w0 N(x^3) + w1 N(x^2) + w2 N(x) + b,   N(z) = z / sqrt(mean(z^2) + eps)
    (Motif 2 12.7B technical report, https://arxiv.org/abs/2511.07464)

With r_p = (mean(x^2p) + eps)^(-1/2), g the gradient of y, n the width, and A_p = sum(g x^p) over a
row, where p = 3, 2, 1 goes with w0, w1, w2:

    dx   = sum_p w_p r_p p x^(p-1) (g - r_p^2 x^p A_p / n)
    dw_p = sum over rows of r_p A_p,   db = sum over rows of sum(g)

The forward pass keeps a row's three power sums (12 bytes), the backward pass reads x again.
Floor, in transfers of the activation: forward 2, backward 3; with `up` 3 and 5.

Rows that are cut over ranks: poly_norm_parts.py.
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
    contiguous_like,
    num_rows,
    runs_triton,
)

# ---- kernels. A tile holds whole rows; backward, a program walks over tiles and loads ahead.


@triton.jit
def sum_four(a, b, c, d):  # four (ROWS, COLUMNS) -> four (ROWS,)
    """Sum along the rows."""
    if a.shape[0] > 1:
        return tl.sum(a, axis=1), tl.sum(b, axis=1), tl.sum(c, axis=1), tl.sum(d, axis=1)
    # One reduction in place of four: a row spans the warps, and barriers are what it costs.
    sums = tl.sum(tl.join(tl.join(a, b), tl.join(c, d)), axis=1)  # (ROWS, 2, 2)
    ab, cd = tl.split(sums)
    a, b = tl.split(ab)
    c, d = tl.split(cd)
    return a, b, c, d


@triton.jit
def _load_weights(weight_ptr, bias_ptr):
    w0 = tl.load(weight_ptr).to(tl.float32)
    w1 = tl.load(weight_ptr + 1).to(tl.float32)
    w2 = tl.load(weight_ptr + 2).to(tl.float32)
    return w0, w1, w2, tl.load(bias_ptr).to(tl.float32)


@triton.jit
def load_sums(sums_ptr, rows, row_mask):
    """Return the sums of x^6, x^4 and x^2 of rows."""
    s3 = tl.load(sums_ptr + rows * 3, row_mask, other=0.0)
    s2 = tl.load(sums_ptr + rows * 3 + 1, row_mask, other=0.0)
    s1 = tl.load(sums_ptr + rows * 3 + 2, row_mask, other=0.0)
    return s3, s2, s1


@triton.jit
def store_sums(sums_ptr, rows, row_mask, s3, s2, s1):
    """Write the sums of x^6, x^4 and x^2 of rows."""
    tl.store(sums_ptr + rows * 3, s3, row_mask)
    tl.store(sums_ptr + rows * 3 + 1, s2, row_mask)
    tl.store(sums_ptr + rows * 3 + 2, s1, row_mask)


@triton.jit
def _poly_norm_forward_kernel(
    x_ptr,  # (num_rows, num_columns)
    up_ptr,  # like x
    weight_ptr,  # (3,)
    bias_ptr,  # (1,)
    sums_ptr,  # (num_rows, 3) float32: sums of x^6, x^4, x^2
    out_ptr,  # like x
    num_rows,
    num_columns,
    width,  # of whole rows, of which num_columns are here
    eps,
    HAS_UP: tl.constexpr,
    GIVEN_SUMS: tl.constexpr,  # read the sums, in place of writing them
    KEEP_PACKED: tl.constexpr,  # x is of 16 bits
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)[None, :]
    row_mask = rows < num_rows
    mask = row_mask[:, None] & (columns < num_columns)
    offsets = rows[:, None].to(tl.int64) * num_columns + columns
    packed = tl.load(x_ptr + offsets, mask, other=0.0)
    if HAS_UP:
        up = tl.load(up_ptr + offsets, mask, other=0.0)
    x = packed.to(tl.float32)
    if GIVEN_SUMS:
        s3, s2, s1 = load_sums(sums_ptr, rows, row_mask)
    else:
        square = x * x
        fourth = square * square
        s3, s2, s1, _ = sum_four(fourth * square, fourth, square, square)
        store_sums(sums_ptr, rows, row_mask, s3, s2, s1)
    if KEEP_PACKED:
        # A move that the compiler cannot see through: x waits for its sums in half the registers.
        # On an H200 at 16384 columns: 75 registers for 104, 0.262 ms for 0.309.
        packed = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [packed], dtype=packed.dtype, is_pure=False, pack=2
        )
        x = packed.to(tl.float32)
    w0, w1, w2, bias = _load_weights(weight_ptr, bias_ptr)
    c3 = (w0 * tl.rsqrt(s3 / width + eps))[:, None]
    c2 = (w1 * tl.rsqrt(s2 / width + eps))[:, None]
    c1 = (w2 * tl.rsqrt(s1 / width + eps))[:, None]
    y = ((c3 * x + c2) * x + c1) * x + bias
    if HAS_UP:
        y *= up.to(tl.float32)
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _poly_norm_backward_kernel(
    dout_ptr,  # (num_rows, num_columns)
    x_ptr,  # like dout
    up_ptr,  # like dout
    weight_ptr,  # (3,)
    bias_ptr,  # (1,)
    sums_ptr,  # (num_rows, 3) float32
    dx_ptr,  # like dout
    dup_ptr,  # like dout
    dsums_ptr,  # (num_rows, 3) float32
    partials_ptr,  # (programs, 4) float32: a program's part of dw0, dw1, dw2, db
    num_rows,
    num_columns,
    width,
    eps,
    HAS_UP: tl.constexpr,
    GIVEN_SUMS: tl.constexpr,  # write the sums' gradient, in place of taking it into dx
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    w0, w1, w2, bias = _load_weights(weight_ptr, bias_ptr)
    dw0 = tl.zeros([ROWS], tl.float32)
    dw1 = tl.zeros([ROWS], tl.float32)
    dw2 = tl.zeros([ROWS], tl.float32)
    dbias = tl.zeros([ROWS], tl.float32)
    columns = tl.arange(0, COLUMNS)[None, :]
    num_tiles = tl.cdiv(num_rows, ROWS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=STAGES):
        rows = tile * ROWS + tl.arange(0, ROWS)
        row_mask = rows < num_rows
        mask = row_mask[:, None] & (columns < num_columns)
        offsets = rows[:, None].to(tl.int64) * num_columns + columns
        x = tl.load(x_ptr + offsets, mask, other=0.0)
        g = tl.load(dout_ptr + offsets, mask, other=0.0)
        if HAS_UP:
            up = tl.load(up_ptr + offsets, mask, other=0.0)
        s3, s2, s1 = load_sums(sums_ptr, rows, row_mask)
        r3 = tl.rsqrt(s3 / width + eps)
        r2 = tl.rsqrt(s2 / width + eps)
        r1 = tl.rsqrt(s1 / width + eps)
        c3 = (w0 * r3)[:, None]
        c2 = (w1 * r2)[:, None]
        c1 = (w2 * r1)[:, None]
        x = x.to(tl.float32)
        g = g.to(tl.float32)
        if HAS_UP:
            y = ((c3 * x + c2) * x + c1) * x + bias
            tl.store(dup_ptr + offsets, (g * y).to(dup_ptr.dtype.element_ty), mask)
            g *= up.to(tl.float32)
        gx = g * x
        gxx = gx * x
        a3, a2, a1, a0 = sum_four(gxx * x, gxx, gx, g)
        # r A before any further power of r: for x about 1e4 r^3 alone is near float32's end.
        p3, p2, p1 = r3 * a3, r2 * a2, r1 * a1
        dw0 += p3
        dw1 += p2
        dw2 += p1
        dbias += a0
        dx = g * ((3 * c3 * x + 2 * c2) * x + c1)
        # Minus the gradients of the sums of x^6, x^4, x^2.
        e3 = w0 * p3 / width * r3 * r3 * 0.5
        e2 = w1 * p2 / width * r2 * r2 * 0.5
        e1 = w2 * p1 / width * r1 * r1 * 0.5
        if GIVEN_SUMS:
            store_sums(dsums_ptr, rows, row_mask, -e3, -e2, -e1)
        else:
            square = x * x
            e3, e2, e1 = 6 * e3[:, None], 4 * e2[:, None], 2 * e1[:, None]
            dx -= x * ((e3 * square + e2) * square + e1)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask)
    partials_ptr += tl.program_id(0) * 4
    tl.store(partials_ptr, tl.sum(dw0))
    tl.store(partials_ptr + 1, tl.sum(dw1))
    tl.store(partials_ptr + 2, tl.sum(dw2))
    tl.store(partials_ptr + 3, tl.sum(dbias))


# ---- launchers


# Elements a thread, registers and stages were chosen over 5120 to 16384 columns of bfloat16 on an
# H200 (torch 2.11, triton 3.6; fractions of a device copy's bandwidth at 16384 x 16384: forward
# 0.97, with up 1.02, backward 0.96, with up 0.94). Backward without up, a program for each tile
# stayed at 0.84, since nothing is loaded while a row's sums are under way. With up that form
# reached 1.01 at 8192 and 16384 columns in a probe, but 0.94 at 13824 and 0.89 at 5120, where the
# walk had 0.95 and 0.93.


def forward_tiling(x: Tensor, has_up: bool = False) -> Tiling:
    """Return the tiles of kernels that read x, and with it `up`, once."""
    if has_up:
        return Tiling.of(x, 32, max_registers=64 if x.element_size() == 2 else None)
    return Tiling.of(x, 64 if x.element_size() == 2 else 32)


def _backward_tiling(x: Tensor) -> Tiling:
    return Tiling.of(x, 64 if x.element_size() == 2 else 32, programs_per_core=2, stages=3)


def launch_forward(
    x: Tensor,  # (..., columns)
    up: Tensor | None,  # like x
    sums: Tensor | None,  # (..., 3) float32, of whole rows; None computes them from x
    weight: Tensor,  # (3,)
    bias: Tensor,  # (1,)
    width: int,
    eps: float,
) -> tuple[Tensor, Tensor]:  # like x; the sums
    """Return PolyNorm of x, times `up` if there is one, and the sums of the rows."""
    given = sums is not None
    out = contiguous_like(x)
    sums = sums.contiguous() if given else empty_sums(x)
    if x.numel() == 0:
        return out, sums
    x = x.contiguous()
    tiling = forward_tiling(x, up is not None)
    with torch.cuda.device_of(x):
        _poly_norm_forward_kernel[tiling.grid(x)](
            x,
            x if up is None else up.contiguous(),
            weight.contiguous(),
            bias,
            sums,
            out,
            num_rows(x),
            x.shape[-1],
            width,
            eps,
            HAS_UP=up is not None,
            GIVEN_SUMS=given,
            KEEP_PACKED=up is None and x.element_size() == 2 and can_use_ptx(x),
            **tiling.options(x),
        )
    return out, sums


@torch.library.custom_op("titan_motif::poly_norm_backward", mutates_args=())
def backward(
    dout: Tensor,
    x: Tensor,
    up: Tensor | None,
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    width: int,
    eps: float,
    given_sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx; dup, empty without up; dsums, empty unless given; (4,) of dw0, dw1, dw2, db."""
    dx, dup, dsums, dparameters = _backward_outputs(x, up, given_sums)
    if x.numel() == 0:
        return dx, dup, dsums.zero_(), dparameters.zero_()
    x = x.contiguous()
    tiling = _backward_tiling(x)
    grid = tiling.grid(x)
    partials = dparameters.new_empty(*grid, 4)
    with torch.cuda.device_of(x):
        _poly_norm_backward_kernel[grid](
            dout.contiguous(),
            x,
            x if up is None else up.contiguous(),
            weight.contiguous(),
            bias,
            sums.contiguous(),
            dx,
            dup,
            dsums,
            partials,
            num_rows(x),
            x.shape[-1],
            width,
            eps,
            HAS_UP=up is not None,
            GIVEN_SUMS=given_sums,
            **tiling.options(x, num_inputs=2 if up is None else 3),
        )
    # A grid of one size sums in one order: the same bits on every run.
    return dx, dup, dsums, torch.sum(partials, 0, out=dparameters)


@backward.register_fake
def _(dout, x, up, sums, weight, bias, width, eps, given_sums):
    return _backward_outputs(x, up, given_sums)


def _backward_outputs(x: Tensor, up: Tensor | None, given_sums: bool) -> tuple[Tensor, ...]:
    nothing = (0,)
    return (
        contiguous_like(x),
        x.new_empty(nothing) if up is None else contiguous_like(up),
        empty_sums(x) if given_sums else x.new_empty(nothing, dtype=torch.float32),
        x.new_empty(4, dtype=torch.float32),
    )


def empty_sums(x: Tensor) -> Tensor:
    """Return room for the sums of every row of x."""
    return x.new_empty((*x.shape[:-1], 3), dtype=torch.float32)


# ---- operators


@torch.library.custom_op("titan_motif::poly_norm", mutates_args=())
def _poly_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return launch_forward(x, None, None, weight, bias, x.shape[-1], eps)


@_poly_norm.register_fake
def _(x, weight, bias, eps):
    return contiguous_like(x), empty_sums(x)


@torch.library.custom_op("titan_motif::poly_norm_mul", mutates_args=())
def _poly_norm_mul(
    x: Tensor, up: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return launch_forward(x, up, None, weight, bias, x.shape[-1], eps)


@_poly_norm_mul.register_fake
def _(x, up, weight, bias, eps):
    return contiguous_like(x), empty_sums(x)


# ---- gradients of the operators


def parameter_gradients(dparameters: Tensor, weight: Tensor, bias: Tensor):
    """Split the gradient of all four parameters into the weight's and the bias's."""
    dweight, dbias = dparameters.split((3, 1))
    return dweight.to(weight.dtype), dbias.to(bias.dtype)


def _save_poly_norm(ctx, inputs, output):
    x, weight, bias, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], weight, bias)


def _poly_norm_gradients(ctx, dout, _):
    x, sums, weight, bias = ctx.saved_tensors
    dx, _, _, dparameters = backward(dout, x, None, sums, weight, bias, x.shape[-1], ctx.eps, False)
    return dx, *parameter_gradients(dparameters, weight, bias), None


def _save_poly_norm_mul(ctx, inputs, output):
    x, up, weight, bias, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, up, output[1], weight, bias)


def _poly_norm_mul_gradients(ctx, dout, _):
    x, up, sums, weight, bias = ctx.saved_tensors
    dx, dup, _, dparameters = backward(dout, x, up, sums, weight, bias, x.shape[-1], ctx.eps, False)
    return dx, dup, *parameter_gradients(dparameters, weight, bias), None


_poly_norm.register_autograd(_poly_norm_gradients, setup_context=_save_poly_norm)
_poly_norm_mul.register_autograd(_poly_norm_mul_gradients, setup_context=_save_poly_norm_mul)


# ---- public calls


def poly_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    implementation: Implementation = "auto",
) -> Tensor:
    """Apply PolyNorm over the last dimension.

    Equation: y = w0 N(x^3) + w1 N(x^2) + w2 N(x) + b,  N(z) = z / sqrt(mean(z^2) + eps)
              (https://arxiv.org/abs/2511.07464)
    Shapes:   x (..., width); weight (3,); bias (1,) -> like x, in x's dtype
    Computed: in float32 (float64 for float64 inputs), with one cast at the end
    Raises:   ValueError for other shapes, and as `runs_triton` says
    """
    check_inputs(x, None, weight, bias, eps)
    if runs_triton(x, implementation):
        return _poly_norm(x, weight, bias, eps)[0]
    return reference.poly_norm(x, weight, bias, eps)


def poly_norm_mul(
    x: Tensor,
    up: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return PolyNorm(x) * up: the product is taken before the one cast to x's dtype.

    Shapes: x, up (..., width); weight (3,); bias (1,) -> like x
    Raises: ValueError for other shapes, and as `runs_triton` says
    """
    check_inputs(x, up, weight, bias, eps)
    if runs_triton(x, implementation):
        return _poly_norm_mul(x, up, weight, bias, eps)[0]
    return reference.poly_norm_mul(x, up, weight, bias, eps)


def check_inputs(x: Tensor, up: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> None:
    """Raise ValueError, one line, for what no path computes."""
    check_rows(x, eps)
    if up is not None and (up.shape, up.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"up is {up.dtype} {tuple(up.shape)}; x's {x.dtype} {tuple(x.shape)} is needed"
        )
    if weight.shape != (3,) or bias.shape != (1,):
        found = f"weight is {tuple(weight.shape)} and bias {tuple(bias.shape)}"
        raise ValueError(f"{found}; (3,) and (1,) are needed")
