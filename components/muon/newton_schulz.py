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

from typing import Literal

import torch
from torch import Tensor

from titan_motif.components.muon.coefficients import Coefficients

Method = Literal["direct", "gram"]

GRAM_RESTARTS: tuple[int, ...] = (2,)
"""Steps before which the Gram form begins anew."""
LEAST_NORM = 1e-30
"""What a smaller Frobenius norm counts as: a matrix of zeros stays one."""


def orthogonalize(
    matrices: Tensor,
    coefficients: Coefficients,
    method: Method = "direct",
    dtype: torch.dtype | None = torch.bfloat16,
    restarts: tuple[int, ...] = GRAM_RESTARTS,
) -> Tensor:
    """Return the nearest thing to a semi-orthogonal matrix that the steps reach.

    Equation: X_0 = G / ||G||_F, X <- a X + (b A + c A^2) X with A = X X^T
              (https://kellerjordan.github.io/posts/muon/; tall matrices transposed)
    Shapes:   (..., rows, columns) floating -> the same, in the input's dtype
    Args:
        dtype:    of the products; None keeps the input's
        restarts: of the Gram form: the steps, counted from 0, before which it begins anew
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
    if method == "direct":
        x = _direct(x, coefficients)
    elif method == "gram":
        x = _gram(x, coefficients, restarts)
    else:
        raise ValueError(f"method {method!r}; 'direct' or 'gram' is needed")
    x = x.to(matrices.dtype)
    return x.mT if is_tall else x


def _direct(x: Tensor, coefficients: Coefficients) -> Tensor:
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def _gram(x: Tensor, coefficients: Coefficients, restarts: tuple[int, ...]) -> Tensor:
    q = None  # the identity, before the first step and after a restart
    r = x @ x.mT
    for step, (a, b, c) in enumerate(coefficients):
        if q is not None and step in restarts:
            x, q = q @ x, None
            r = x @ x.mT
        p = b * r + c * (r @ r)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        q = p if q is None else p @ q
        if step + 1 < len(coefficients) and step + 1 not in restarts:
            r = p @ r @ p
    return x if q is None else q @ x
