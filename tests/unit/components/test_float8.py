"""Which layers are in FP8, with which rounding, and what is refused."""

import pytest
import torch
from torch import nn
from torchao.float8.float8_linear import Float8Linear

from titan_motif.components.float8 import convert_to_float8, is_scaled_by_tensor


def network() -> nn.Module:
    return nn.ModuleDict(
        {
            "layers": nn.ModuleDict({"q_proj": nn.Linear(32, 64, bias=False)}),
            "norm": nn.LayerNorm(32),
            "output": nn.Linear(32, 128, bias=False),
        }
    )


def test_the_output_projection_stays_as_it_is():
    model = network()
    assert convert_to_float8(model, "rowwise_with_gw_hp", emulate=True) == ["layers.q_proj"]
    assert type(model["output"]) is nn.Linear
    assert type(model["layers"]["q_proj"]) is Float8Linear


def test_a_name_that_is_left_out_has_to_be_there():
    assert convert_to_float8(network(), "rowwise", ["q_proj"], emulate=True) == []
    with pytest.raises(ValueError, match="filter_fqns has 'wq', which no linear layer"):
        convert_to_float8(network(), "rowwise", ["wq"], emulate=True)


def test_sizes_that_no_product_has_are_refused_by_name():
    model = nn.ModuleDict({"up_proj": nn.Linear(40, 64, bias=False)})
    with pytest.raises(ValueError, match=r"up_proj is 64 x 40; .* multiples of 16"):
        convert_to_float8(model, "tensorwise", emulate=True)


def to_float8(x: torch.Tensor, dim: int | None) -> torch.Tensor:
    """Round to e4m3 under a scale that is a power of two, of each row or column."""
    largest = x.abs().amax(dim, keepdim=True)
    scale = torch.exp2(torch.floor(torch.log2(448 / largest)))
    return (x * scale).to(torch.float8_e4m3fn).to(x.dtype) / scale


@pytest.mark.parametrize("recipe", ["rowwise_with_gw_hp", "rowwise"])
def test_a_layer_rounds_by_rows(recipe):
    torch.manual_seed(0)
    model = nn.ModuleDict({"proj": nn.Linear(64, 32, bias=False)})
    convert_to_float8(model, recipe, emulate=True)
    x, grad = torch.randn(48, 64, requires_grad=True), torch.randn(48, 32)
    # Rows of unlike size, which one scale for all would not resolve.
    with torch.no_grad():
        x[::2] *= 1e-4
    weight = model["proj"].weight
    y = model["proj"](x)
    y.backward(grad)
    rounded = to_float8(weight.detach(), 1)
    torch.testing.assert_close(y, to_float8(x.detach(), 1) @ rounded.t(), rtol=1e-5, atol=1e-6)
    exact = grad.t() @ x.detach()
    if recipe == "rowwise_with_gw_hp":
        torch.testing.assert_close(weight.grad, exact, rtol=1e-5, atol=1e-6)
    else:
        product = to_float8(grad, 0).t() @ to_float8(x.detach(), 0)
        torch.testing.assert_close(weight.grad, product, rtol=1e-5, atol=1e-5)
        assert 0.01 < ((weight.grad - exact).norm() / exact.norm()).item() < 0.06


def test_one_scale_a_tensor_is_told_apart():
    mixed = network()
    convert_to_float8(mixed, "tensorwise", emulate=True)
    assert is_scaled_by_tensor(mixed["layers"])
    assert not is_scaled_by_tensor(mixed)  # the output projection is in there
    rows = network()
    convert_to_float8(rows, "rowwise", emulate=True)
    assert not is_scaled_by_tensor(rows["layers"])
