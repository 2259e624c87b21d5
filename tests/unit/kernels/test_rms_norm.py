"""RMSNorm's kernels against float64, on odd shapes, and as operators of PyTorch."""

import importlib
from functools import partial

import pytest
import torch
from oracle import BOUNDS, Launches, draw, errors, with_gradients

from titan_motif import kernels
from titan_motif.kernels import reference
from titan_motif.kernels.launch import IS_INTERPRETED

rms_norm_module = importlib.import_module("titan_motif.kernels.rms_norm")

DTYPES = list(BOUNDS)
SHAPES = [(rows, width) for rows in (1, 7, 83) for width in (7, 512, 1000, 1536)]
SHAPES += [(3, 4099), (3, 5120), (2, 8200)]  # read in chunks, the last of them not whole
NATIVE_SHAPES = [(5000, 256), (300, 4096), (9, 13824), (30, 16384), (3, 32768)]

rms_norm = partial(kernels.rms_norm, implementation="triton")
add_rms_norm = partial(kernels.add_rms_norm, implementation="triton")
rms_norm_reference = partial(reference.rms_norm, eps=1e-6)
add_rms_norm_reference = partial(reference.add_rms_norm, eps=1e-6)


def inputs(*shape: int, device: str, dtype=torch.float32, scale: float = 1.0):
    """x, residual, weight, and the gradients of both outputs."""
    x = draw(*shape, device=device, dtype=dtype, scale=scale, seed=1)
    residual = draw(*shape, device=device, dtype=dtype, scale=scale, seed=2)
    weight = draw(shape[-1], device=device, dtype=dtype, seed=3)
    douts = [draw(*shape, device=device, dtype=dtype, seed=seed) for seed in (4, 5)]
    return x, residual, weight, douts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES + NATIVE_SHAPES)
def test_values_and_gradients(device, rows: int, width: int, dtype):
    if IS_INTERPRETED and (rows, width) in NATIVE_SHAPES:
        pytest.skip("a shape for a GPU")
    x, _, weight, (dout, _) = inputs(rows, width, device=device, dtype=dtype)
    found = errors(rms_norm, rms_norm_reference, (x, weight), [dout])
    assert max(found) < BOUNDS[dtype], found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES + NATIVE_SHAPES)
def test_values_and_gradients_after_an_addition(device, rows: int, width: int, dtype):
    if IS_INTERPRETED and (rows, width) in NATIVE_SHAPES:
        pytest.skip("a shape for a GPU")
    x, residual, weight, douts = inputs(rows, width, device=device, dtype=dtype)
    normed, total = add_rms_norm(x, residual, weight)
    exact = x.double() + residual.double()
    assert (total.double() - exact).norm() < BOUNDS[dtype] * exact.norm()
    # The norm is that of the rounded sum, so float64 has to start from it.
    exact = rms_norm_reference(total.double(), weight.double())
    assert (normed.double() - exact).norm() < BOUNDS[dtype] * exact.norm()
    found = with_gradients(add_rms_norm, (x, residual, weight), douts)
    wide = with_gradients(
        lambda t, w: (rms_norm_reference(t, w), t + 0),
        (total.double(), weight.double()),
        [dout.double() for dout in douts],
    )
    dx, dresidual, dweight = found[2:]
    assert torch.equal(dx, dresidual)
    for gradient, expected in ((dx, wide[2]), (dweight, wide[3])):
        assert gradient.dtype == dtype
        assert (gradient.double() - expected).norm() < BOUNDS[dtype] * expected.norm()


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_rows(device, width: int):
    """dx cancels to about eps there, so its error is bounded by that of the terms."""
    x, _, weight, (dout, _) = inputs(50, width, device=device)
    x = x.sign() * (x.abs() + 0.1)
    y, dx, dweight = with_gradients(rms_norm, (x, weight), [dout])
    exact = with_gradients(rms_norm_reference, (x.double(), weight.double()), [dout.double()])
    largest = dout.abs().max() * weight.abs().max() * (1 / x).abs().max()
    assert (dx.double() - exact[1]).abs().max() < 1e-6 * largest
    for found, expected in ((y, exact[0]), (dweight, exact[2])):
        assert (found.double() - expected).norm() < 2e-6 * expected.norm()


def test_eps_is_the_one_that_is_given(device):
    x, residual, weight, douts = inputs(5, 100, device=device, scale=0.1)
    fast, plain = partial(rms_norm, eps=1e-2), partial(reference.rms_norm, eps=1e-2)
    assert max(errors(fast, plain, (x, weight), douts[:1])) < 2e-6
    fast, plain = partial(add_rms_norm, eps=1e-2), partial(reference.add_rms_norm, eps=1e-2)
    assert max(errors(fast, plain, (x, residual, weight), douts)) < 2e-6


@pytest.mark.parametrize("scale", [1e-6, 1e4, 1e15])
def test_values_of_tiny_and_large_rows(device, scale: float):
    x, _, weight, (dout, _) = inputs(9, 520, device=device, scale=scale)
    found = errors(rms_norm, rms_norm_reference, (x, weight), [dout])
    assert max(found) < 2e-6, found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_infinite_where_the_exact_result_is_not(device, dtype):
    x, residual, weight, douts = inputs(4, 300, device=device, dtype=dtype)
    x[0], residual[0], x[1], x[2, 0] = 0.0, 0.0, x[1] * 1e-7, 1e4
    for tensor in with_gradients(add_rms_norm, (x, residual, weight), douts):
        assert torch.isfinite(tensor).all()


def test_a_weight_of_another_dtype(device):
    x, _, weight, (dout, _) = inputs(30, 256, device=device, dtype=torch.bfloat16)
    found = errors(rms_norm, rms_norm_reference, (x, weight.float()), [dout])
    assert max(found) < BOUNDS[torch.bfloat16]
    assert found[2] < 2e-6  # the weight's gradient is not rounded to bfloat16


def test_the_same_bits_on_each_run(device):
    x, residual, weight, douts = inputs(83, 512, device=device, dtype=torch.bfloat16)
    first = with_gradients(add_rms_norm, (x, residual, weight), douts)
    for _ in range(3):
        again = with_gradients(add_rms_norm, (x, residual, weight), douts)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_any_leading_shape_and_any_strides(device):
    x, residual, weight, douts = inputs(24, 10, device=device)
    expected = with_gradients(add_rms_norm, (x, residual, weight), douts)

    def turn(t):
        return t.view(2, 3, 4, 10).transpose(0, 2).contiguous().transpose(0, 2)

    columns_first = turn(residual).transpose(2, 3).contiguous().transpose(2, 3)
    found = with_gradients(add_rms_norm, (turn(x), columns_first, weight), [*map(turn, douts)])
    assert not turn(x).is_contiguous()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.flatten(), b.flatten())


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16)])
def test_no_rows(device, shape):
    x, residual, weight, douts = inputs(*shape, device=device)
    normed, total, dx, _, dweight = with_gradients(add_rms_norm, (x, residual, weight), douts)
    assert normed.shape == total.shape == dx.shape == shape
    assert dweight.tolist() == [0] * 16


def test_the_sum_alone_may_be_used(device):
    x, residual, weight, (_, dsum) = inputs(5, 40, device=device)
    leaves = [t.requires_grad_() for t in (x, residual)]
    gradients = torch.autograd.grad(add_rms_norm(*leaves, weight)[1], leaves, dsum)
    assert all(torch.equal(gradient, dsum) for gradient in gradients)


def test_the_kernels_are_launched(device, monkeypatch):
    forward = Launches(monkeypatch, rms_norm_module, "_rms_norm_forward_kernel")
    backward = Launches(monkeypatch, rms_norm_module, "_rms_norm_backward_kernel")
    x, residual, weight, douts = inputs(3, 64, device=device)
    with_gradients(kernels.rms_norm, (x, weight), douts[:1])  # "auto"
    with_gradients(kernels.add_rms_norm, (x, residual, weight), douts)
    assert (forward.count, backward.count) == (2, 2)
    with_gradients(partial(kernels.rms_norm, implementation="torch"), (x, weight), douts[:1])
    assert (forward.count, backward.count) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_pass_opcheck(device, dtype):
    x, residual, weight, (dout, dsum) = inputs(2, 3, 24, device=device, dtype=dtype)
    operators = torch.ops.titan_motif
    torch.library.opcheck(operators.rms_norm_backward, (dout, None, x, weight, 1e-6))
    torch.library.opcheck(operators.rms_norm_backward, (dout, dsum, x, weight, 1e-6))
    x, residual, weight = (t.requires_grad_() for t in (x, residual, weight))
    torch.library.opcheck(operators.rms_norm, (x, weight, 1e-6))
    torch.library.opcheck(operators.add_rms_norm, (x, residual, weight, 1e-6))


def test_backward_keeps_the_sum_alone(device):
    kept: list[torch.Tensor] = []
    x, residual, weight, _ = inputs(40, 512, device=device, dtype=torch.bfloat16)
    x, residual, weight = (t.requires_grad_() for t in (x, residual, weight))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        _, total = add_rms_norm(x, residual, weight)
    assert {t.data_ptr() for t in kept} == {total.data_ptr(), weight.data_ptr()}


def test_wrong_shapes_are_named():
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"weight is \(4,\); \(8,\) is needed"):
        kernels.rms_norm(x, x[0, :4])
    with pytest.raises(ValueError, match=r"eps is -1; more than 0 is needed"):
        kernels.rms_norm(x, x[0], eps=-1)
    with pytest.raises(ValueError, match=r"residual is torch.float64 \(2, 8\); x's torch.float32"):
        kernels.add_rms_norm(x, x.double(), x[0])
