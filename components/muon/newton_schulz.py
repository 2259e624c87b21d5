"""Orthogonalise matrices by Newton-Schulz: towards U V^T of G = U S V^T, without a decomposition.

Two forms of the same iteration X <- p(X X^T) X, p(A) = a I + b A + c A^2, X wide (m x n, m <= n):

direct  works on X itself: per step one Gram product, one square, one product onto X
gram    works on R = X X^T and on Q, the product of all p so far: all of them polynomials of one
        symmetric matrix, so they commute, stay symmetric, and are m x m; X is touched at the
        beginning, at each restart, and at the end

gram needs fewer operations the wider X is, but R drifts from Q X (Q X)^T by rounding, and what is
lost in forming R is lost to the end: a restart forms it anew from Q X, which by then is far better
conditioned than X was.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Literal

import torch
from torch import Tensor

from titan_motif.components.muon.coefficients import Coefficients
from titan_motif.components.muon.method import (
    GRAM_RESTARTS,
    Method,
    choose_method,
    has_fast_products,
)
from titan_motif.kernels import Implementation, cast_scaled, symmetric_product

SymmetricProduct = Callable[..., Tensor]

LEAST_NORM = 1e-30
"""What a smaller Frobenius norm counts as: a matrix of zeros stays one."""
WORKING_DTYPES = {"direct": torch.bfloat16, "gram": torch.float16}


def orthogonalize(
    matrices: Tensor,
    coefficients: Coefficients,
    method: Method = "auto",
    dtype: torch.dtype | Literal["auto"] | None = "auto",
    restarts: tuple[int, ...] = GRAM_RESTARTS,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return the nearest thing to a semi-orthogonal matrix that the steps reach.

    Equation: X_0 = G / ||G||_F, X <- a X + (b A + c A^2) X with A = X X^T
              (https://kellerjordan.github.io/posts/muon/; tall matrices transposed)
    Shapes:   (..., rows, columns) floating -> the same, in the input's dtype
    Args:
        method:   'auto' takes what is faster for the shape and the batch
                  (titan_motif.components.muon.method.choose_method)
        dtype:    of the products; None keeps the input's; 'auto' is, on a GPU, bfloat16 for the
                  direct form, and float16 for the Gram form: all its values lie within float16's
                  range, and its errors add up in R and Q, where bfloat16's eight times coarser
                  steps made singular values of up to 2.5 from a condition of 1e6. On a CPU it is
                  float32: one without products in 16 bits took 41 ms in bfloat16 for 1.2 ms in
                  float32 (256 x 256, five steps)
        restarts: of the Gram form: the steps, counted from 0, before which it begins anew
        implementation: of the symmetric products (titan_motif.kernels). 'auto' computes whole
                  products, by PyTorch, where the direct form's are too small to fill a GPU
    Raises:   ValueError if the input is no matrix, or the method has another name
    """
    if matrices.ndim < 2:
        raise ValueError(f"a tensor of shape {tuple(matrices.shape)}; matrices are needed")
    rows, columns = matrices.shape[-2:]
    batch = prod(matrices.shape[:-2])
    if method == "auto":
        method = choose_method(rows, columns, batch, matrices.is_cuda)
    if method not in WORKING_DTYPES:
        raise ValueError(f"method {method!r}; 'auto', 'direct' or 'gram' is needed")
    if dtype == "auto":
        dtype = WORKING_DTYPES[method] if matrices.is_cuda else torch.float32
    x = _normalized(matrices.reshape(batch, rows, columns), dtype or matrices.dtype, implementation)
    wide = x.mT if rows > columns else x
    if method == "direct":
        if implementation == "auto" and not has_fast_products(rows, columns, batch):
            implementation = "torch"
        wide = _direct(
            wide, coefficients, partial(symmetric_product, implementation=implementation)
        )
    else:
        product = partial(symmetric_product, implementation=implementation)
        for run in _runs(coefficients, restarts):
            wide = _gram(wide, run, product)
    x = wide.mT if rows > columns else wide
    if x.dtype != matrices.dtype:
        x = cast_scaled(x, None, matrices.dtype, implementation)
    return x.reshape(matrices.shape)


def _normalized(matrices: Tensor, dtype: torch.dtype, implementation: Implementation) -> Tensor:
    """Return the matrices (batch, rows, columns) over their Frobenius norms."""
    # In float32: the squares of a bfloat16 gradient leave too little of its norm.
    wide = torch.promote_types(matrices.dtype, torch.float32)
    norms = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=wide)
    return cast_scaled(matrices, 1 / norms.clamp_min(LEAST_NORM), dtype, implementation)


def _onto(q: Tensor, x: Tensor, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """Return beta x + alpha q x for a symmetric q, laid out in memory as x is."""
    if not x.is_contiguous() and x.mT.is_contiguous():
        # q^T is q, and the order in which cuBLAS is faster: 679 TFLOP/s for 673 at 16384 x 4096.
        return torch.baddbmm(x.mT, x.mT, q.mT, beta=beta, alpha=alpha).mT
    return torch.baddbmm(x, q, x, beta=beta, alpha=alpha)


def _direct(x: Tensor, coefficients: Coefficients, symmetric_product: SymmetricProduct) -> Tensor:
    for a, b, c in coefficients:
        gram = symmetric_product(x)
        p = symmetric_product(gram, addend=gram, alpha=c, beta=b, are_symmetric=True)
        # a X apart: in 16 bits a I would drown the rest of the polynomial on the diagonal.
        x = _onto(p, x, beta=a)
    return x


def _runs(coefficients: Coefficients, restarts: tuple[int, ...]) -> Iterator[Coefficients]:
    """Yield the steps from one beginning to before the next."""
    starts = [0, *sorted({step for step in restarts if 0 < step < len(coefficients)})]
    for start, end in zip(starts, [*starts[1:], len(coefficients)], strict=True):
        yield coefficients[start:end]


def _gram(x: Tensor, run: Coefficients, symmetric_product: SymmetricProduct) -> Tensor:
    """Apply a run of steps to x (batch, m, n), forming R = x x^T once.

    Of each p and of Q the multiple of the identity is kept apart, as a float: p = a I + `p`,
    Q = diagonal I + `d`. On a matrix of low rank Q x is what remains of a multiple of x when most
    of it has cancelled, and a diagonal that is rounded in 16 bits errs in one direction: at rank 4,
    4096 x 16384, the distance to the polar factor was 0.0167; apart it is 0.0140, and what exact
    polynomials leave is 0.0141.
    """
    r = symmetric_product(x)
    product = partial(symmetric_product, are_symmetric=True)
    diagonal, d = 1.0, None
    for index, (a, b, c) in enumerate(run):
        is_last = index + 1 == len(run)
        # To be applied in one product Q has to be whole: scaled so that d I needs no rounding.
        whole = torch.tensor(a * diagonal, dtype=x.dtype).item() if is_last else 0.0
        scale = whole / (a * diagonal) if is_last else 1.0
        if d is None:
            p = product(r, addend=r, alpha=scale * c, beta=scale * b, gamma=whole)
            d = p
        else:
            p = product(r, addend=r, alpha=c, beta=b)
            factors = {"alpha": scale, "beta": scale * a, "delta": scale * diagonal}
            d = product(p, d, addend=d, second=p, gamma=whole, **factors)
        diagonal *= a
        if not is_last:
            t = product(p, r, addend=r, beta=a)
            r = product(t, p, addend=t, beta=a)
    return _onto(d, x, alpha=1 / scale)
