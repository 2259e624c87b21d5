"""PolyNorm's kernels against float64, on odd shapes, and as operators of PyTorch."""

import importlib
from functools import partial

import pytest
import torch
from oracle import BOUNDS, Launches, draw, errors, relative_error, with_gradients
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from titan_motif import kernels
from titan_motif.kernels import reference
from titan_motif.kernels.launch import IS_INTERPRETED

# The functions of the package hide its modules of the same name.
poly_norm_module = importlib.import_module("titan_motif.kernels.poly_norm")
parts_module = importlib.import_module("titan_motif.kernels.poly_norm_parts")

DTYPES = list(BOUNDS)
SHAPES = [(rows, width) for rows in (1, 7, 83) for width in (7, 512, 1000, 1536)]
NATIVE_SHAPES = [(5, 33), (3, 4096), (300, 5120), (9, 13824), (300, 16384), (4, 20001), (3, 32768)]

poly_norm = partial(kernels.poly_norm, implementation="triton")
poly_norm_mul = partial(kernels.poly_norm_mul, implementation="triton")


def parameters(device: str) -> list[torch.Tensor]:
    return [torch.tensor([0.7, -0.4, 0.5], device=device), torch.tensor([0.3], device=device)]


def inputs(*shape: int, device: str, dtype=torch.float32, scale: float = 1.0):
    """x, up, weight, bias, and the gradient of the output."""
    x = draw(*shape, device=device, dtype=dtype, scale=scale, seed=1)
    up = draw(*shape, device=device, dtype=dtype, seed=2)
    dout = draw(*shape, device=device, dtype=dtype, seed=3)
    return x, up, *parameters(device), dout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES + NATIVE_SHAPES)
def test_values_and_gradients(device, rows: int, width: int, dtype):
    if IS_INTERPRETED and (rows, width) in NATIVE_SHAPES:
        pytest.skip("a shape for a GPU")
    x, up, weight, bias, dout = inputs(rows, width, device=device, dtype=dtype)
    found = errors(poly_norm, reference.poly_norm, (x, weight, bias), [dout])
    assert max(found) < BOUNDS[dtype], found
    found = errors(poly_norm_mul, reference.poly_norm_mul, (x, up, weight, bias), [dout])
    assert max(found) < BOUNDS[dtype], found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 30.0, 1e4])
def test_values_of_tiny_and_large_rows(device, scale: float, dtype):
    if dtype == torch.float16 and scale in (1e-6, 1e4):
        pytest.skip("float16 does not reach there, or its gradient does not")
    x, up, weight, bias, dout = inputs(9, 520, device=device, dtype=dtype, scale=scale)
    found = errors(poly_norm, reference.poly_norm, (x, weight, bias), [dout])
    assert max(found) < BOUNDS[dtype], found
    found = errors(poly_norm_mul, reference.poly_norm_mul, (x, up, weight, bias), [dout])
    assert max(found) < BOUNDS[dtype], found


def test_eps_is_the_one_that_is_given(device):
    x, up, weight, bias, dout = inputs(5, 100, device=device, scale=0.1)
    given = {"eps": 1e-2}
    fast, plain = partial(poly_norm, **given), partial(reference.poly_norm, **given)
    assert max(errors(fast, plain, (x, weight, bias), [dout])) < 2e-6
    fast, plain = partial(poly_norm_mul, **given), partial(reference.poly_norm_mul, **given)
    assert max(errors(fast, plain, (x, up, weight, bias), [dout])) < 2e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_infinite_where_the_exact_result_is_not(device, dtype):
    x, up, weight, bias, dout = inputs(5, 300, device=device, dtype=dtype)
    x[0], x[1, ::2], x[2] = 0.0, 0.0, x[2] * 1e4 / x[2].abs().max()
    x[3], x[4, 0] = x[3] * 1e-7, 1e4
    for tensor in with_gradients(poly_norm_mul, (x, up, weight, bias), [dout]):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_rows(device, width: int):
    """dx cancels to about eps there, so its error is bounded by that of the terms."""
    x, _, weight, bias, dout = inputs(50, width, device=device)
    x = x.sign() * (x.abs() + 0.1)
    y, dx, dweight, dbias = with_gradients(poly_norm, (x, weight, bias), [dout])
    exact = with_gradients(
        reference.poly_norm, [t.double() for t in (x, weight, bias)], [dout.double()]
    )
    largest = dout.abs().max() * weight.abs().max() * (1 / x).abs().max()
    assert (dx.double() - exact[1]).abs().max() < 1e-6 * largest
    for found, expected in ((y, exact[0]), (dweight, exact[2]), (dbias, exact[3])):
        assert relative_error(found, expected) < 2e-6


def test_sums_that_cancel_err_no_more_than_their_terms(device):
    x, up, weight, bias, _ = inputs(83, 1000, device=device)
    dout = draw(83, 1000, device=device, seed=4) - 0.5
    *_, dbias = with_gradients(poly_norm_mul, (x, up, weight, bias), [dout])
    terms = dout.double() * up.double()
    assert (dbias.double() - terms.sum()).abs() < 2e-6 * terms.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_on_each_run(device, dtype):
    x, up, weight, bias, dout = inputs(83, 512, device=device, dtype=dtype)
    first = with_gradients(poly_norm_mul, (x, up, weight, bias), [dout])
    for _ in range(3):
        again = with_gradients(poly_norm_mul, (x, up, weight, bias), [dout])
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[3].dtype == first[4].dtype == torch.float32


def test_any_leading_shape_and_any_strides(device):
    x, up, weight, bias, dout = inputs(24, 10, device=device)
    expected = with_gradients(poly_norm_mul, (x, up, weight, bias), [dout])
    shape = (2, 3, 4, 10)
    turned = [t.view(shape).transpose(0, 2).contiguous().transpose(0, 2) for t in (x, up, dout)]
    assert not turned[0].is_contiguous()
    columns_first = turned[1].transpose(2, 3).contiguous().transpose(2, 3)
    found = with_gradients(poly_norm_mul, (turned[0], columns_first, weight, bias), [turned[2]])
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.flatten(), b.flatten())


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16)])
def test_no_rows(device, shape):
    x, up, weight, bias, dout = inputs(*shape, device=device)
    y, dx, dup, dweight, dbias = with_gradients(poly_norm_mul, (x, up, weight, bias), [dout])
    assert y.shape == dx.shape == dup.shape == shape
    assert dweight.tolist() == [0, 0, 0]
    assert dbias.tolist() == [0]


def test_parts_of_rows_add_up(device):
    """Rows cut in three uneven parts, one of them empty, against whole rows."""
    x, up, weight, bias, dout = inputs(7, 100, device=device)
    cuts = (64, 36, 0)

    def in_parts(x, up, weight, bias):
        xs, ups = x.split(cuts, dim=-1), up.split(cuts, dim=-1)
        sums = sum(kernels.poly_norm_power_sums(part, "triton") for part in xs)
        applied = [
            kernels.poly_norm_mul_given_sums(
                part, up_part, sums, 100, weight, bias, eps=1e-2, implementation="triton"
            )
            for part, up_part in zip(xs, ups, strict=True)
        ]
        return torch.cat(applied, dim=-1)

    exact = partial(reference.poly_norm_mul, eps=1e-2)
    found = errors(in_parts, exact, (x, up, weight, bias), [dout])
    assert max(found) < 2e-6, found


# ---- as operators


def test_the_kernels_are_launched(device, monkeypatch):
    forward = Launches(monkeypatch, poly_norm_module, "_poly_norm_forward_kernel")
    backward = Launches(monkeypatch, poly_norm_module, "_poly_norm_backward_kernel")
    sums = Launches(monkeypatch, parts_module, "_poly_norm_power_sums_kernel")
    x, up, weight, bias, dout = inputs(3, 64, device=device)
    with_gradients(kernels.poly_norm, (x, weight, bias), [dout])  # "auto"
    assert (forward.count, backward.count) == (1, 1)
    with_gradients(kernels.poly_norm_mul, (x, up, weight, bias), [dout])
    kernels.poly_norm_power_sums(x)
    assert (forward.count, backward.count, sums.count) == (2, 2, 1)
    with_gradients(
        partial(kernels.poly_norm_mul, implementation="torch"), (x, up, weight, bias), [dout]
    )
    kernels.poly_norm(x.double(), weight, bias)  # float64 is not Triton's
    assert (forward.count, backward.count, sums.count) == (2, 2, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_pass_opcheck(device, dtype):
    x, up, weight, bias, _ = inputs(2, 3, 24, device=device, dtype=dtype)
    x, up, weight, bias = (t.requires_grad_() for t in (x, up, weight, bias))
    sums = reference.poly_norm_power_sums(x).detach().requires_grad_()
    dsums = torch.ones_like(sums)
    operators = torch.ops.titan_motif
    torch.library.opcheck(operators.poly_norm, (x, weight, bias, 1e-6))
    torch.library.opcheck(operators.poly_norm_mul, (x, up, weight, bias, 1e-6))
    torch.library.opcheck(operators.poly_norm_power_sums, (x,))
    torch.library.opcheck(operators.poly_norm_mul_given_sums, (x, up, sums, weight, bias, 24, 1e-6))
    x, up, weight, bias, sums = (t.detach() for t in (x, up, weight, bias, sums))
    torch.library.opcheck(operators.poly_norm_power_sums_backward, (dsums, x))
    for given in (False, True):
        arguments = (x, x, up, sums, weight, bias, 24, 1e-6, given)
        torch.library.opcheck(operators.poly_norm_backward, arguments)


def test_compiling_keeps_the_operator_whole(device):
    targets = []

    def backend(graph, example_inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    x, up, weight, bias, dout = inputs(4, 64, device=device)
    compiled = torch.compile(
        lambda *tensors: 2 * kernels.poly_norm_mul(*tensors), fullgraph=True, backend=backend
    )
    found = with_gradients(compiled, (x, up, weight, bias), [dout])
    assert any("titan_motif.poly_norm_mul" in target for target in targets)
    expected = with_gradients(poly_norm_mul, (x, up, weight, bias), [2 * dout])
    assert all(
        torch.allclose(a, b, rtol=1e-6) for a, b in zip(found[1:], expected[1:], strict=True)
    )


@pytest.mark.parametrize("kept", [True, False])
def test_selective_checkpointing_can_name_the_operator(device, monkeypatch, kept: bool):
    forward = Launches(monkeypatch, poly_norm_module, "_poly_norm_forward_kernel")
    named = torch.ops.titan_motif.poly_norm_mul.default

    def policy(context, operator, *arguments, **keywords):
        is_named = kept and operator == named
        return CheckpointPolicy.MUST_SAVE if is_named else CheckpointPolicy.PREFER_RECOMPUTE

    x, up, weight, bias, dout = inputs(4, 64, device=device)
    recomputed = partial(
        checkpoint,
        lambda *tensors: poly_norm_mul(*tensors).sin(),
        use_reentrant=False,
        context_fn=partial(create_selective_checkpoint_contexts, policy),
    )
    with_gradients(recomputed, (x, up, weight, bias), [dout])
    assert forward.count == (1 if kept else 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_keeps_the_inputs_and_three_numbers_a_row(device, dtype):
    kept: list[torch.Tensor] = []
    x, up, weight, bias, _ = inputs(40, 512, device=device, dtype=dtype)
    x, up, weight, bias = (t.requires_grad_() for t in (x, up, weight, bias))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        poly_norm_mul(x, up, weight, bias)
    extra = [t for t in kept if t.data_ptr() not in (x.data_ptr(), up.data_ptr())]
    assert len(kept) - len(extra) == 2
    assert sum(t.numel() * t.element_size() for t in extra) == 4 * (3 * 40 + 3 + 1)


def test_wrong_shapes_are_named():
    x = torch.zeros(2, 8)
    weight, bias = torch.zeros(3), torch.zeros(1)
    with pytest.raises(ValueError, match=r"up is torch.float32 \(2, 4\); x's torch.float32 \(2, 8"):
        kernels.poly_norm_mul(x, x[:, :4], weight, bias)
    with pytest.raises(ValueError, match=r"up is torch.float64 \(2, 8\); x's torch.float32"):
        kernels.poly_norm_mul(x, x.double(), weight, bias)
    with pytest.raises(ValueError, match=r"power_sums is \(1, 3\); \(2, 3\) is needed"):
        kernels.poly_norm_mul_given_sums(x, x, torch.ones(1, 3), 8, weight, bias)
    with pytest.raises(ValueError, match="x is a scalar"):
        kernels.poly_norm(x[0, 0], weight, bias)
    with pytest.raises(ValueError, match="eps is 0; more than 0 is needed"):
        kernels.poly_norm(x, weight, bias, eps=0)
    with pytest.raises(ValueError, match=r"weight is \(2,\) and bias \(1,\); \(3,\) and \(1,\)"):
        kernels.poly_norm(x, weight[:2], bias)
