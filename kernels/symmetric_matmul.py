"""Matrix products whose result is symmetric: half of its tiles computed, the other half mirrored.

    out = alpha A B^T + beta C + delta D + gamma I

Such are A A^T, polynomials of a symmetric matrix, and the product of two symmetric matrices that
commute (polynomials of the same one): what Newton-Schulz works on. Floor: half of the operations of
a product, n m^2 for A (m, n).

Two kernels: one moves tiles by descriptors (Hopper's tensor memory accelerator), for 16 bits and
sizes that tiles divide; the other by pointers, for all else.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from titan_motif.kernels import reference
from titan_motif.kernels.launch import IS_INTERPRETED, Implementation, can_use_ptx, runs_triton

TILE = 128
DEPTH = 64
"""Of the loop over k, in the kernel with descriptors: 128 bytes, the widest row of a box."""
_DEPTH_BYTES = 128
"""The same of the kernel with pointers."""


# ---- kernels. A program computes a tile on or below the diagonal, and stores it twice.


@triton.jit
def _lower_tile(index):
    """Return row and column of the index-th tile: rows of 1, 2, 3, ... tiles."""
    row = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root is rounded: at most one row off.
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)
    return row, index - row * (row + 1) // 2


@triton.jit(do_not_specialize=["num_tiles"])
def _symmetric_described_kernel(
    a_desc,  # (batch * m, k), or (batch * k, m) where IS_TALL
    b_desc,  # like a
    addend_desc,  # (batch * m, m)
    second_desc,  # (batch * m, m)
    out_desc,  # (batch * m, m)
    m,
    k,
    num_tiles,  # of a matrix, on and below the diagonal
    alpha,
    beta,
    delta,
    gamma,
    NUM_ADDENDS: tl.constexpr,
    IS_TALL: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    batch = tl.program_id(0) // num_tiles
    row, column = _lower_tile(tl.program_id(0) % num_tiles)
    first_row, first_column = row * TILE, column * TILE
    top = batch * m + first_row
    if NUM_ADDENDS == 2:
        total = second_desc.load([top, first_column]).to(tl.float32) * (delta / alpha)
    else:
        total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, k, DEPTH):
        if IS_TALL:
            a = a_desc.load([batch * k + start, first_row]).T
            b = b_desc.load([batch * k + start, first_column])
        else:
            a = a_desc.load([top, start])
            b = b_desc.load([batch * m + first_column, start]).T
        total = tl.dot(a, b, total)
    total *= alpha
    rows = first_row + tl.arange(0, TILE)[:, None]
    columns = first_column + tl.arange(0, TILE)[None, :]
    if NUM_ADDENDS >= 1:
        total += beta * addend_desc.load([top, first_column]).to(tl.float32)
    total += tl.where(rows == columns, gamma, 0.0)
    result = total.to(out_desc.dtype)
    if row == column:  # mirrors its own lower half: no two values for one place
        result = tl.where(rows >= columns, result, result.T)
        out_desc.store([top, first_column], result)
    else:
        out_desc.store([top, first_column], result)
        out_desc.store([batch * m + first_column, first_row], result.T)


@triton.jit(do_not_specialize=["num_tiles"])
def _symmetric_pointer_kernel(
    a_ptr,  # (batch, m, k), strides (m * k, row_stride, inner_stride)
    b_ptr,  # like a
    addend_ptr,  # (batch, m, m), symmetric
    second_ptr,  # (batch, m, m), symmetric
    out_ptr,  # (batch, m, m)
    m,
    k,
    row_stride,
    inner_stride,
    num_tiles,  # of a matrix, on and below the diagonal
    alpha,
    beta,
    delta,
    gamma,
    NUM_ADDENDS: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    batch = (tl.program_id(0) // num_tiles).to(tl.int64)
    row, column = _lower_tile(tl.program_id(0) % num_tiles)
    a_ptr += batch * m * k
    b_ptr += batch * m * k
    rows = row * TILE + tl.arange(0, TILE)
    columns = column * TILE + tl.arange(0, TILE)
    # Rows beyond the matrix read its first ones again: their results are not stored.
    a_rows = (rows % m).to(tl.int64)[:, None] * row_stride
    b_rows = (columns % m).to(tl.int64)[:, None] * row_stride
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, k, DEPTH):
        inner = start + tl.arange(0, DEPTH)[None, :]
        offsets = inner.to(tl.int64) * inner_stride
        a = tl.load(a_ptr + a_rows + offsets, inner < k, other=0.0)
        b = tl.load(b_ptr + b_rows + offsets, inner < k, other=0.0)
        total = tl.dot(a, b.T, total, input_precision="ieee")
    total *= alpha
    offsets = batch * m * m + rows.to(tl.int64)[:, None] * m + columns[None, :]
    # A tile on the diagonal mirrors its own lower half.
    mask = (rows[:, None] < m) & (columns[None, :] <= rows[:, None])
    if NUM_ADDENDS >= 1:
        total += beta * tl.load(addend_ptr + offsets, mask, other=0.0).to(tl.float32)
    if NUM_ADDENDS == 2:
        total += delta * tl.load(second_ptr + offsets, mask, other=0.0).to(tl.float32)
    total += tl.where(rows[:, None] == columns[None, :], gamma, 0.0)
    result = total.to(out_ptr.dtype.element_ty)
    mirrored = batch * m * m + columns.to(tl.int64)[:, None] * m + rows[None, :]
    mirrored_mask = (rows[None, :] < m) & (columns[:, None] <= rows[None, :])
    tl.store(out_ptr + offsets, result, mask)
    tl.store(out_ptr + mirrored, result.T, mirrored_mask)


# ---- launchers


class _Options(NamedTuple):
    num_warps: int
    num_stages: int
    max_registers: int | None = None


# Sustained TFLOP/s of half of the product on one H200 (torch 2.11, triton 3.6, float16, random
# values). The card is at its 700 W there, at 1.35 to 1.45 GHz of 1.98, so what moves less wins.
# Products of five 4096 x 4096 with an addend, read as stored / as their transpose:
#   4 warps, 3 stages: 542 / 571;   8 warps, 3 stages, 128 registers: 520 / 534
#   tiles of 128 x 256, 8 warps, 4 stages, one program a core: 567 / 568
# (cuBLAS, full products: 648.) X X^T of 4096 x 16384, wide / tall:
#   4 warps, 3 stages: 577 / 587;   8 warps, 3 stages, 128 registers: 566 / 642
#   8 warps, 5 stages, one program a core: 618 / 616;   tiles of 128 x 256: 544 / 639
# With pointers in place of descriptors: 368 and 495.
_WITH_ADDEND = _Options(num_warps=4, num_stages=3)
_WIDE = _Options(num_warps=8, num_stages=5)
_TALL = _Options(num_warps=8, num_stages=3, max_registers=128)
_POINTERS = _Options(num_warps=8, num_stages=3)


def _is_tall(a: Tensor) -> bool:
    """Return whether a (..., m, k) lies in memory as its transpose."""
    return not a.is_contiguous() and a.mT.is_contiguous()


def _takes_descriptors(a: Tensor) -> bool:
    """Return whether tiles divide a (..., m, k), and the chip moves them by descriptors."""
    m, k = a.shape[-2:]
    fits = a.element_size() == 2 and m % TILE == 0 and k % DEPTH == 0 and a.data_ptr() % 16 == 0
    if not fits or IS_INTERPRETED:
        return fits
    return can_use_ptx(a) and torch.cuda.get_device_capability(a.device) >= (9, 0)


def _descriptor(matrices: Tensor, rows: int, columns: int) -> TensorDescriptor:
    flat = matrices.reshape(-1, matrices.shape[-1])
    return TensorDescriptor.from_tensor(flat, [rows, columns])


def _launch_described(
    a: Tensor, b: Tensor, addends: list[Tensor], out: Tensor, scalars: tuple, is_tall: bool
) -> None:
    m, k = a.shape[-2:]
    num_tiles = (m // TILE) * (m // TILE + 1) // 2
    alone = _TALL if is_tall else _WIDE
    options = _WITH_ADDEND if addends else alone
    more = {"maxnreg": options.max_registers} if options.max_registers else {}
    if is_tall:
        a, b = (_descriptor(t.mT, DEPTH, TILE) for t in (a, b))
    else:
        a, b = (_descriptor(t, TILE, DEPTH) for t in (a, b))
    written = _descriptor(out, TILE, TILE)
    read = [_descriptor(t, TILE, TILE) for t in addends]
    _symmetric_described_kernel[(num_tiles * (out.numel() // (m * m)),)](
        a,
        b,
        *(read + [written] * (2 - len(read))),
        written,
        m,
        k,
        num_tiles,
        *scalars,
        NUM_ADDENDS=len(addends),
        IS_TALL=is_tall,
        TILE=TILE,
        DEPTH=DEPTH,
        num_warps=options.num_warps,
        num_stages=options.num_stages,
        **more,
    )


def _launch_pointers(
    a: Tensor, b: Tensor, addends: list[Tensor], out: Tensor, scalars: tuple, is_tall: bool
) -> None:
    m, k = a.shape[-2:]
    num_tiles = triton.cdiv(m, TILE) * (triton.cdiv(m, TILE) + 1) // 2
    _symmetric_pointer_kernel[(num_tiles * (out.numel() // (m * m)),)](
        a,
        b,
        *(addends + [out] * (2 - len(addends))),
        out,
        m,
        k,
        *((1, m) if is_tall else (k, 1)),
        num_tiles,
        *scalars,
        NUM_ADDENDS=len(addends),
        TILE=TILE,
        DEPTH=_DEPTH_BYTES // a.element_size(),
        num_warps=_POINTERS.num_warps,
        num_stages=_POINTERS.num_stages,
    )


@torch.library.custom_op("titan_motif::symmetric_product", mutates_args=())
def _symmetric_product(
    a: Tensor,
    b: Tensor,
    addend: Tensor | None,
    second: Tensor | None,
    alpha: float,
    beta: float,
    delta: float,
    gamma: float,
) -> Tensor:
    out = a.new_empty(*a.shape[:-1], a.shape[-2])
    if out.numel() == 0:
        return out
    is_tall = _is_tall(a)
    a, b = (t.mT.contiguous().mT if is_tall else t.contiguous() for t in (a, b))
    if addend is None:
        addend, second, beta, delta = second, None, delta, 0.0
    addends = [t.contiguous() for t in (addend, second) if t is not None]
    launch = _launch_described if _takes_descriptors(a) else _launch_pointers
    with torch.cuda.device_of(a):
        launch(a, b, addends, out, (alpha, beta, delta, gamma), is_tall)
    return out


@_symmetric_product.register_fake
def _(a, b, addend, second, alpha, beta, delta, gamma):
    return a.new_empty(*a.shape[:-1], a.shape[-2])


def symmetric_product(
    a: Tensor,
    b: Tensor | None = None,
    addend: Tensor | None = None,
    second: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    delta: float = 1.0,
    gamma: float = 0.0,
    are_symmetric: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return alpha a b^T + beta addend + delta second + gamma I, known to be symmetric.

    Shapes:   a, b (..., m, k), b None is a; addend, second (..., m, m), symmetric -> (..., m, m)
    Computed: products summed in float32, one cast at the end; exactly symmetric on the Triton path
    Layout:   any; fast where a and b, or their transposes, are contiguous
    Args:
        are_symmetric: whether a and b themselves are: the kernel then reads them as their
                       transposes, which is 5% faster
    Raises:   ValueError for other shapes, mixed dtypes, or alpha 0; no gradient goes through it
    """
    b = a if b is None else b
    square = (*a.shape[:-1], a.shape[-2])
    given = [t for t in (addend, second) if t is not None]
    if a.ndim < 2 or b.shape != a.shape or any(t.shape != square for t in given):
        found = [tuple(t.shape) for t in (a, b, *given)]
        raise ValueError(f"shapes {found}; two of (..., m, k), then of (..., m, m) are needed")
    if {a.dtype} != {t.dtype for t in (a, b, *given)}:
        raise ValueError(f"a is {a.dtype}; one dtype for all is needed")
    if alpha == 0:
        raise ValueError("alpha is 0; without a product there is nothing to do")
    if runs_triton(a, implementation):
        if are_symmetric:
            a, b = a.mT, b.mT
        return _symmetric_product(a, b, addend, second, alpha, beta, delta, gamma)
    return reference.symmetric_product(a, b, addend, second, alpha, beta, delta, gamma)
