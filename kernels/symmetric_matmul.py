"""Matrix products whose result is symmetric: half of its tiles computed, the other half mirrored.

    out = alpha A B^T + beta D + gamma I

Such are A A^T, polynomials of a symmetric matrix, and the product of two symmetric matrices that
commute (polynomials of the same one): what Newton-Schulz works on. Floor: half of the operations of
a product, n m^2 for A (m, n).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from titan_motif.kernels import reference
from titan_motif.kernels.launch import Implementation, runs_triton

_TILE = 128
_DEPTH_BYTES = 128
"""Of a row, what a stage of the loop holds: 64 columns of 16 bits."""


@triton.jit
def _product_kernel(
    a_ptr,  # (batch, m, k)
    b_ptr,  # (batch, m, k)
    addend_ptr,  # (batch, m, m), symmetric
    out_ptr,  # (batch, m, m)
    m,
    k,
    alpha,
    beta,
    gamma,
    HAS_ADDEND: tl.constexpr,
    TILE: tl.constexpr,  # of out: TILE x TILE
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,  # rows of tiles that are walked through together, for the cache
):
    num_tiles = tl.cdiv(m, TILE)
    index = tl.program_id(0)
    first = index // (GROUP * num_tiles) * GROUP
    group = tl.minimum(num_tiles - first, GROUP)
    row = first + index % group
    column = index % (GROUP * num_tiles) // group
    if row < column:  # mirrored from the tile below the diagonal
        return
    batch = tl.program_id(1).to(tl.int64)
    a_ptr += batch * m * k
    b_ptr += batch * m * k
    out_ptr += batch * m * m
    rows = row * TILE + tl.arange(0, TILE)
    columns = column * TILE + tl.arange(0, TILE)
    # Rows beyond the matrix read its first ones again: their results are not stored.
    a_rows = (rows % m).to(tl.int64)[:, None] * k
    b_rows = (columns % m).to(tl.int64)[:, None] * k
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, k, DEPTH):
        inner = start + tl.arange(0, DEPTH)[None, :]
        a = tl.load(a_ptr + a_rows + inner, inner < k, other=0.0)
        b = tl.load(b_ptr + b_rows + inner, inner < k, other=0.0)
        total = tl.dot(a, b.T, total, input_precision="ieee")
    total *= alpha
    offsets = rows.to(tl.int64)[:, None] * m + columns[None, :]
    # A tile on the diagonal mirrors its own lower half.
    mask = (rows[:, None] < m) & (columns[None, :] <= rows[:, None])
    if HAS_ADDEND:
        addend = tl.load(addend_ptr + batch * m * m + offsets, mask, other=0.0)
        total += beta * addend.to(tl.float32)
    total += tl.where(rows[:, None] == columns[None, :], gamma, 0.0)
    result = total.to(out_ptr.dtype.element_ty)
    mirrored = columns.to(tl.int64)[:, None] * m + rows[None, :]
    mirrored_mask = (rows[None, :] < m) & (columns[:, None] <= rows[None, :])
    tl.store(out_ptr + offsets, result, mask)
    tl.store(out_ptr + mirrored, result.T, mirrored_mask)


@torch.library.custom_op("titan_motif::symmetric_product", mutates_args=())
def _symmetric_product(
    a: Tensor, b: Tensor, addend: Tensor | None, alpha: float, beta: float, gamma: float
) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    m, k = a.shape[-2:]
    out = a.new_empty(*a.shape[:-1], m)
    if out.numel() == 0:
        return out
    num_tiles = triton.cdiv(m, _TILE)
    with torch.cuda.device_of(a):
        _product_kernel[(num_tiles**2, out.numel() // (m * m))](
            a,
            b,
            out if addend is None else addend.contiguous(),
            out,
            m,
            k,
            alpha,
            beta,
            gamma,
            HAS_ADDEND=addend is not None,
            TILE=_TILE,
            DEPTH=_DEPTH_BYTES // a.element_size(),
            GROUP=8,
            num_warps=8,
            num_stages=3,
        )
    return out


@_symmetric_product.register_fake
def _(a, b, addend, alpha, beta, gamma):
    return a.new_empty(*a.shape[:-1], a.shape[-2])


def symmetric_product(
    a: Tensor,
    b: Tensor | None = None,
    addend: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.0,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return alpha a b^T + beta addend + gamma I, which the caller knows to be symmetric.

    Shapes:   a, b (..., m, k), b None is a; addend (..., m, m), symmetric -> (..., m, m), a's dtype
    Computed: products summed in float32, one cast at the end; exactly symmetric on the Triton path
    Raises:   ValueError for other shapes or mixed dtypes; no gradient goes through it
    """
    b = a if b is None else b
    square = (*a.shape[:-1], a.shape[-2])
    if a.ndim < 2 or b.shape != a.shape or (addend is not None and addend.shape != square):
        found = [tuple(t.shape) for t in (a, b, addend) if t is not None]
        raise ValueError(f"shapes {found}; two of (..., m, k), then one of (..., m, m) are needed")
    if {a.dtype} != {t.dtype for t in (a, b, addend) if t is not None}:
        raise ValueError(f"a is {a.dtype}; one dtype for all is needed")
    if runs_triton(a, implementation):
        return _symmetric_product(a, b, addend, alpha, beta, gamma)
    return reference.symmetric_product(a, b, addend, alpha, beta, gamma)
