"""Products with a symmetric result, against float64."""

import importlib
from functools import partial

import pytest
import torch
from oracle import BOUNDS, Launches, draw, relative_error

from titan_motif import kernels
from titan_motif.kernels import reference
from titan_motif.kernels.launch import IS_INTERPRETED

symmetric_matmul_module = importlib.import_module("titan_motif.kernels.symmetric_matmul")

# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
DTYPES = [dtype for dtype in BOUNDS if dtype != torch.bfloat16 or not IS_INTERPRETED]
TILED_SHAPES = [(128, 64), (256, 192), (3, 128, 128), (2, 384, 64)]
"""What tiles divide: descriptors serve those of 16 bits."""
NATIVE_SHAPES = [(2, 1024, 1536), (1, 2048, 2048)]
SHAPES = [(1, 1), (16, 64), (130, 33), (300, 200), (2, 129, 70), *TILED_SHAPES]

symmetric_product = partial(kernels.symmetric_product, implementation="triton")


def skip_if_for_a_gpu(shape: tuple[int, ...]) -> None:
    if IS_INTERPRETED and shape in NATIVE_SHAPES:
        pytest.skip("a shape for a GPU")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_tall", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("shape", SHAPES + NATIVE_SHAPES, ids=str)
def test_gram_matrices(device, shape, is_tall: bool, dtype):
    skip_if_for_a_gpu(shape)
    a = draw(*shape, device=device, dtype=dtype, seed=1)
    if is_tall:  # the same values, laid out in memory as the transpose
        a = a.mT.contiguous().mT
    found = symmetric_product(a)
    assert relative_error(found, a.double() @ a.double().mT) < BOUNDS[dtype]
    assert torch.equal(found, found.mT)
    assert found.dtype == dtype
    assert torch.equal(found, symmetric_product(a, a.clone()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1,), (64,), (129,), (3, 200), (256,), (2, 128), (2, 1024)], ids=str
)
def test_polynomials_and_products_of_symmetric_matrices(device, shape, dtype):
    if IS_INTERPRETED and shape == (2, 1024):
        pytest.skip("a shape for a GPU")
    x = draw(*shape, shape[-1] + 5, device=device, seed=2) / shape[-1]
    gram = (x @ x.mT).to(dtype)
    gram = gram.tril() + gram.tril(-1).mT  # exactly symmetric, in whatever order x x^T was summed
    wide = gram.double()
    identity = torch.eye(shape[-1], dtype=torch.float64, device=device)
    factors = {"alpha": 0.5, "beta": -1.5, "gamma": 2.0}
    for are_symmetric in (False, True):
        options = {**factors, "are_symmetric": are_symmetric}
        square = symmetric_product(gram, addend=gram, **options)
        exact = 0.5 * wide @ wide - 1.5 * wide + 2.0 * identity
        assert relative_error(square, exact) < BOUNDS[dtype]
        # They commute: both are polynomials of gram.
        product = symmetric_product(gram, square, are_symmetric=are_symmetric)
        assert relative_error(product, wide @ square.double()) < 3 * BOUNDS[dtype]
        assert torch.equal(product, product.mT)
        both = symmetric_product(gram, gram, gram, square, delta=0.75, **options)
        assert relative_error(both, exact + 0.75 * square.double()) < BOUNDS[dtype]
        assert torch.equal(both, both.mT)
        alone = symmetric_product(gram, second=square, alpha=0.5, delta=0.75, gamma=2.0)
        expected = 0.5 * wide @ wide + 0.75 * square.double() + 2.0 * identity
        assert relative_error(alone, expected) < BOUNDS[dtype]
    plain = reference.symmetric_product(wide, wide, wide, square.double(), 0.5, -1.5, 0.75, 2.0)
    assert relative_error(plain, exact + 0.75 * square.double()) < 1e-12


def test_products_that_differ_across_the_diagonal_are_mirrored(device):
    """a b^T of matrices that do not commute: the lower half counts, in every tile."""
    a, b = (draw(2, 256, 64, device=device, dtype=torch.float16, seed=seed) for seed in (1, 2))
    for x, y in ((a, b), (a.mT.contiguous().mT, b), (a[..., :60], b[..., :60])):
        found = symmetric_product(x, y)
        lower = (x.double() @ y.double().mT).tril()
        exact = lower + lower.tril(-1).mT
        assert relative_error(found, exact) < BOUNDS[torch.float16]
        assert torch.equal(found, found.mT)


def test_the_same_bits_on_each_run(device):
    a, b = (draw(2, 256, 128, device=device, dtype=torch.float16, seed=seed) for seed in (1, 2))
    first = symmetric_product(a, b)
    assert all(torch.equal(symmetric_product(a, b), first) for _ in range(3))


@pytest.mark.parametrize("is_tall", [False, True], ids=["wide", "tall"])
def test_descriptors_serve_16_bits_that_tiles_divide(device, is_tall: bool, monkeypatch):
    if not IS_INTERPRETED and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a chip that moves tiles by descriptors")
    described = Launches(monkeypatch, symmetric_matmul_module, "_symmetric_described_kernel")
    pointers = Launches(monkeypatch, symmetric_matmul_module, "_symmetric_pointer_kernel")

    def multiply(*shape: int, dtype=torch.float16) -> tuple[int, int]:
        a = draw(*shape, device=device, dtype=dtype, seed=1)
        symmetric_product(a.mT.contiguous().mT if is_tall else a)
        return described.count, pointers.count

    assert multiply(2, 128, 64) == (1, 0)
    assert multiply(128, 64, dtype=torch.float32) == (1, 1)
    assert multiply(120, 64) == (1, 2)
    assert multiply(128, 72) == (1, 3)


def test_rows_that_begin_anywhere(device):
    """A view that begins at no multiple of 16 bytes."""
    a = draw(128 * 64 + 1, device=device, dtype=torch.float16, seed=1)[1:].view(128, 64)
    assert relative_error(symmetric_product(a), a.double() @ a.double().mT) < 1e-3


def test_operator_passes_opcheck(device):
    a = draw(2, 20, 24, device=device, seed=1)
    addend = torch.eye(20, device=device).expand(2, 20, 20)
    for given in ((None, None), (addend, None), (addend, addend)):
        arguments = (a, a, *given, 0.5, 2.0, 3.0, 1.0)
        torch.library.opcheck(torch.ops.titan_motif.symmetric_product, arguments)


def test_nothing_and_wrong_shapes(device):
    assert symmetric_product(torch.ones(0, 4, 5, device=device)).shape == (0, 4, 4)
    assert symmetric_product(torch.ones(0, 5, device=device)).shape == (0, 0)
    a = torch.ones(4, 5, device=device)
    with pytest.raises(ValueError, match=r"shapes \[\(4, 5\), \(5, 4\)\]; two of \(..., m, k\)"):
        symmetric_product(a, a.T)
    with pytest.raises(ValueError, match=r"shapes \[\(4, 5\), \(4, 5\), \(4, 5\)\]"):
        symmetric_product(a, second=a)
    with pytest.raises(ValueError, match=r"a is torch.float32; one dtype for all"):
        symmetric_product(a, a.double())
    with pytest.raises(ValueError, match="alpha is 0"):
        symmetric_product(a, alpha=0.0)
