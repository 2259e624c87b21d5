"""Matrices times a scale and cast, against PyTorch's own cast of the float32 product."""

from functools import partial

import pytest
import torch
from oracle import BOUNDS, draw

from titan_motif import kernels

cast_scaled = partial(kernels.cast_scaled, implementation="triton")


@pytest.mark.parametrize("given", list(BOUNDS), ids=str)
@pytest.mark.parametrize("wanted", list(BOUNDS), ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 5), (2, 2, 96, 100)], ids=str)
def test_one_rounding(device, shape, given, wanted):
    x = draw(*shape, device=device, dtype=given, seed=1)
    scales = draw(*shape[:-2], 1, 1, device=device, seed=2)
    plain = partial(kernels.cast_scaled, implementation="torch")
    for factors in (scales, None):
        found = cast_scaled(x, factors, wanted)
        expected = x.double() if factors is None else x.double() * factors.double()
        assert found.dtype == wanted
        assert (found.double() - expected).norm() < BOUNDS[wanted] * expected.norm()
        difference = (found.double() - plain(x, factors, wanted).double()).norm()
        assert difference < BOUNDS[wanted] * expected.norm()


def test_strides_nothing_and_other_dtypes(device):
    x = draw(4, 6, device=device, seed=1)
    assert torch.equal(cast_scaled(x.T, None, torch.float16), x.T.half())
    assert cast_scaled(x[:0], None, torch.float16).shape == (0, 6)
    scale = torch.full((1, 1), 0.5, device=device, dtype=torch.float64)
    assert torch.equal(kernels.cast_scaled(x.double(), scale, torch.float64), x.double() / 2)
    arguments = (x, torch.ones(1, 1, device=device), torch.bfloat16)
    torch.library.opcheck(torch.ops.titan_motif.cast_scaled, arguments)


def test_wrong_shapes_are_named(device):
    x = torch.ones(2, 3, 4, device=device)
    with pytest.raises(ValueError, match=r"shapes \[\(2, 3, 4\), \(2,\)\]; \(..., rows, columns\)"):
        cast_scaled(x, x[:, 0, 0], torch.float16)
    with pytest.raises(ValueError, match="scales are torch"):
        cast_scaled(x, x[:, :1, :1].double(), torch.float16)
