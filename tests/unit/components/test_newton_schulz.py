"""Newton-Schulz: the polynomials by their published values, the forms by singular values."""

import pytest
import torch

import titan_motif.device  # noqa: F401
from titan_motif.components.muon import named_coefficients, orthogonalize
from titan_motif.components.muon.coefficients import NAMES, polar_express
from titan_motif.components.muon.method import choose_method, newton_schulz_flops
from titan_motif.components.muon.newton_schulz import WORKING_DTYPES
from titan_motif.kernels.launch import IS_INTERPRETED

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 12), (12, 5), (33, 33), (3, 8, 20), (2, 2, 20, 8)]


def draw(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def expected(matrices: torch.Tensor, coefficients) -> torch.Tensor:
    """The polynomials on the singular values, by a decomposition: no product of the iteration."""
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / torch.linalg.matrix_norm(matrices.double()).unsqueeze(-1)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return u * s.unsqueeze(-2) @ vh


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_polar_express_has_its_published_coefficients():
    """Of the authors' code, for 1e-3 to 1, before the safety factor (arXiv 2505.16932)."""
    published = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    ]
    for (a, b, c), plain in zip(polar_express(6), published, strict=False):
        unshrunk = (1.01 * a, 1.01**3 * b, 1.01**5 * c)
        assert unshrunk == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("steps", [3, 5, 8])
def test_polar_express_raises_all_singular_values_to_one(steps: int):
    values = torch.logspace(-3, 0, 2001, dtype=torch.float64)
    for a, b, c in polar_express(steps):
        values = a * values + b * values**3 + c * values**5
    errors = (values - 1).abs().max().item()
    # What the steps before leave; the last values by the paper's order of convergence.
    assert errors < {3: 0.95, 5: 0.35, 8: 0.03}[steps]
    if steps > 3:
        previous = torch.logspace(-3, 0, 2001, dtype=torch.float64)
        for a, b, c in polar_express(steps - 1):
            previous = a * previous + b * previous**3 + c * previous**5
        assert errors < (previous - 1).abs().max()


def test_unknown_coefficients_are_refused():
    with pytest.raises(ValueError, match=f"coefficients 'newton'; one of {', '.join(NAMES)}"):
        named_coefficients("newton")
    with pytest.raises(ValueError, match="4 steps of 'motif', which has 5"):
        named_coefficients("motif", steps=4)
    with pytest.raises(ValueError, match="0 steps of polar_express; at least 1"):
        named_coefficients("polar_express", steps=0)
    assert len(named_coefficients("polar_express", steps=7)) == 7


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_forms_apply_the_polynomials_to_the_singular_values(shape, method: str, name: str):
    matrices, coefficients = draw(*shape), named_coefficients(name)
    found = orthogonalize(matrices, coefficients, method, dtype=None)
    assert found.dtype == torch.float64
    assert distance(found, expected(matrices, coefficients)) < 1e-9


@pytest.mark.parametrize("restarts", [(), (1,), (2,), (1, 3)])
def test_restarts_change_nothing_but_rounding(restarts):
    matrices, coefficients = draw(6, 15), named_coefficients("motif")
    direct = orthogonalize(matrices, coefficients, "direct", dtype=None)
    found = orthogonalize(matrices, coefficients, "gram", dtype=None, restarts=restarts)
    assert distance(found, direct) < 1e-9


@pytest.mark.parametrize("method", ["direct", "gram"])
def test_half_precision_stays_near_the_exact_iteration(method: str):
    coefficients = named_coefficients("motif")
    matrices = draw(64, 256, dtype=torch.float32)
    exact = expected(matrices, coefficients)
    # Not by the interpreter, which cannot multiply bfloat16.
    options = {"dtype": WORKING_DTYPES[method], "implementation": "torch"}
    found = orthogonalize(matrices, coefficients, method, **options)
    assert found.dtype == torch.float32
    assert distance(found, exact) < 0.05
    largest = torch.linalg.matrix_norm(found.double(), ord=2)
    assert largest < 1.25


@pytest.mark.parametrize("method", ["direct", "gram"])
def test_the_scale_of_the_input_does_not_matter_and_zeros_stay(method: str):
    coefficients, matrices = named_coefficients("muon"), draw(6, 9)
    found = orthogonalize(1e4 * matrices, coefficients, method, dtype=None)
    assert distance(found, orthogonalize(matrices, coefficients, method, dtype=None)) < 1e-9
    assert not orthogonalize(torch.zeros(4, 6), coefficients, method).any()


@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("shape", [(5, 12), (150, 40), (2, 33, 70)], ids=str)
def test_kernels_apply_the_polynomials_too(shape, method: str):
    if not (torch.cuda.is_available() or IS_INTERPRETED):
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")
    device = "cpu" if IS_INTERPRETED else "cuda"
    matrices, coefficients = draw(*shape, dtype=torch.float32), named_coefficients("motif")
    options = {"dtype": torch.float32, "implementation": "triton"}
    found = orthogonalize(matrices.to(device), coefficients, method, **options)
    assert distance(found.cpu(), expected(matrices, coefficients)) < 1e-4


@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("shape", [(128, 192), (2, 320, 128)], ids=str)
def test_half_precision_by_kernels_stays_near_the_exact_iteration(shape, method: str):
    """Sizes that tiles divide, wide and tall: the kernel with descriptors, where there is one."""
    if not (torch.cuda.is_available() or IS_INTERPRETED):
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")
    device = "cpu" if IS_INTERPRETED else "cuda"
    matrices, coefficients = draw(*shape, dtype=torch.float32), named_coefficients("motif")
    options = {"dtype": torch.float16, "implementation": "triton"}
    found = orthogonalize(matrices.to(device), coefficients, method, **options).cpu()
    assert distance(found, expected(matrices, coefficients)) < 0.03


@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("rank", [1, 4, 32])
def test_half_precision_on_low_rank_stays_near_the_exact_iteration(rank: int, method: str):
    """On the matrix's own subspace; most of Q, a multiple of the identity, cancels there."""
    matrices = draw(256, rank, seed=1) @ draw(rank, 512, seed=2)
    coefficients = named_coefficients("motif")
    exact = expected(matrices, coefficients)
    options = {"dtype": WORKING_DTYPES[method], "implementation": "torch"}
    found = orthogonalize(matrices.float(), coefficients, method, **options)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inside = (u[:, :rank].mT @ (found.double() - exact) @ vh[:rank].mT).norm() / rank**0.5
    assert inside < 3.5e-3


def test_auto_takes_the_form_that_is_faster():
    large = [(4096, 16384), (16384, 4096), (5120, 4096), (4096, 4096), (4096, 8192)]
    assert {choose_method(*shape) for shape in large} == {"gram"}
    assert choose_method(2048, 4096) == choose_method(4096, 2048, batch=3) == "direct"
    assert choose_method(2048, 4096, batch=4) == choose_method(4096, 2048, batch=10) == "gram"
    assert choose_method(4100, 8192) == choose_method(4096, 8200) == "direct"  # no whole tiles
    assert choose_method(4096, 16384, is_gpu=False) == "direct"  # float16 crawls there
    flops = newton_schulz_flops(2048, 4096, 5, "auto")
    assert flops == newton_schulz_flops(2048, 4096, 5, "gram")
    matrices, coefficients = draw(6, 15), named_coefficients("motif")
    found = orthogonalize(matrices, coefficients, dtype=None)
    assert torch.equal(found, orthogonalize(matrices, coefficients, "direct", dtype=None))


def test_the_input_is_not_touched():
    matrices = draw(6, 9, dtype=torch.bfloat16)
    before = matrices.clone()
    orthogonalize(matrices, named_coefficients("motif"), "gram")
    assert torch.equal(matrices, before)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\); matrices are needed"):
        orthogonalize(torch.ones(3), named_coefficients("muon"))
    with pytest.raises(ValueError, match="method 'svd'; 'auto', 'direct' or 'gram' is needed"):
        orthogonalize(torch.ones(3, 3), named_coefficients("muon"), "svd")
