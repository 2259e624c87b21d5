"""Products with a symmetric result, against float64."""

from functools import partial

import pytest
import torch
from oracle import BOUNDS, draw, relative_error

from titan_motif import kernels
from titan_motif.kernels import reference
from titan_motif.kernels.launch import IS_INTERPRETED

# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
DTYPES = [dtype for dtype in BOUNDS if dtype != torch.bfloat16 or not IS_INTERPRETED]

symmetric_product = partial(kernels.symmetric_product, implementation="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (130, 33), (300, 200), (2, 129, 70)], ids=str)
def test_gram_matrices(device, shape, dtype):
    a = draw(*shape, device=device, dtype=dtype, seed=1)
    found = symmetric_product(a)
    assert relative_error(found, a.double() @ a.double().mT) < BOUNDS[dtype]
    assert torch.equal(found, found.mT)
    assert found.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (64,), (129,), (3, 200)], ids=str)
def test_polynomials_and_products_of_symmetric_matrices(device, shape, dtype):
    x = draw(*shape, shape[-1] + 5, device=device, seed=2) / shape[-1]
    gram = (x @ x.mT).to(dtype)
    wide = gram.double()
    identity = torch.eye(shape[-1], dtype=torch.float64, device=device)
    square = symmetric_product(gram, addend=gram, alpha=0.5, beta=-1.5, gamma=2.0)
    exact = 0.5 * wide @ wide - 1.5 * wide + 2.0 * identity
    assert relative_error(square, exact) < BOUNDS[dtype]
    product = symmetric_product(gram, square)  # commute: both are polynomials of gram
    assert relative_error(product, wide @ square.double()) < 3 * BOUNDS[dtype]
    assert torch.equal(product, product.mT)
    plain = reference.symmetric_product(wide, wide, wide, 0.5, -1.5, 2.0)
    assert relative_error(plain, exact) < 1e-12


def test_operator_passes_opcheck(device):
    a = draw(2, 20, 24, device=device, seed=1)
    addend = torch.eye(20, device=device).expand(2, 20, 20)
    for given in (None, addend):
        arguments = (a, a, given, 0.5, 2.0, 1.0)
        torch.library.opcheck(torch.ops.titan_motif.symmetric_product, arguments)


def test_nothing_and_wrong_shapes(device):
    assert symmetric_product(torch.ones(0, 4, 5, device=device)).shape == (0, 4, 4)
    assert symmetric_product(torch.ones(0, 5, device=device)).shape == (0, 0)
    a = torch.ones(4, 5, device=device)
    with pytest.raises(ValueError, match=r"shapes \[\(4, 5\), \(5, 4\)\]; two of \(..., m, k\)"):
        symmetric_product(a, a.T)
    with pytest.raises(ValueError, match=r"a is torch.float32; one dtype for all"):
        symmetric_product(a, a.double())
