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

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from titan_motif.components.muon.coefficients import GRAM_RESTARTS, Coefficients, Method
from titan_motif.kernels import Implementation, symmetric_product

SymmetricProduct = Callable[..., Tensor]

LEAST_NORM = 1e-30
"""What a smaller Frobenius norm counts as: a matrix of zeros stays one."""


def orthogonalize(
    matrices: Tensor,
    coefficients: Coefficients,
    method: Method = "direct",
    dtype: torch.dtype | None = torch.bfloat16,
    restarts: tuple[int, ...] = GRAM_RESTARTS,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return the nearest thing to a semi-orthogonal matrix that the steps reach.

    Equation: X_0 = G / ||G||_F, X <- a X + (b A + c A^2) X with A = X X^T
              (https://kellerjordan.github.io/posts/muon/; tall matrices transposed)
    Shapes:   (..., rows, columns) floating -> the same, in the input's dtype
    Args:
        dtype:    of the products; None keeps the input's
        restarts: of the Gram form: the steps, counted from 0, before which it begins anew
        implementation: of the symmetric products (titan_motif.kernels)
    Raises:   ValueError if the input is no matrix, or the method has another name
    """
    if matrices.ndim < 2:
        raise ValueError(f"a tensor of shape {tuple(matrices.shape)}; matrices are needed")
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    # In float32: the squares of a bfloat16 gradient leave too little of its norm.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.matrix_norm(wide, keepdim=True)
    x = (wide / norm.clamp_min(LEAST_NORM)).to(dtype or matrices.dtype)
    product = partial(symmetric_product, implementation=implementation)
    if method == "direct":
        x = _direct(x, coefficients, product)
    elif method == "gram":
        x = _gram(x, coefficients, restarts, product)
    else:
        raise ValueError(f"method {method!r}; 'direct' or 'gram' is needed")
    x = x.to(matrices.dtype)
    return x.mT if is_tall else x


def _direct(x: Tensor, coefficients: Coefficients, symmetric_product: SymmetricProduct) -> Tensor:
    for a, b, c in coefficients:
        gram = symmetric_product(x)
        # a X apart: in 16 bits a I would drown the rest of the polynomial on the diagonal.
        x = a * x + symmetric_product(gram, addend=gram, alpha=c, beta=b) @ x
    return x


def _gram(
    x: Tensor,
    coefficients: Coefficients,
    restarts: tuple[int, ...],
    symmetric_product: SymmetricProduct,
) -> Tensor:
    q = None  # the identity, before the first step and after a restart
    r = symmetric_product(x)
    for step, (a, b, c) in enumerate(coefficients):
        if q is not None and step in restarts:
            x, q = q @ x, None
            r = symmetric_product(x)
        p = symmetric_product(r, addend=r, alpha=c, beta=b, gamma=a)
        q = p if q is None else symmetric_product(p, q)
        if step + 1 < len(coefficients) and step + 1 not in restarts:
            r = symmetric_product(symmetric_product(p, r), p)
    return x if q is None else q @ x
