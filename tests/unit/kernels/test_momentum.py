"""Momentum and update of Muon, against float64."""

import pytest
import torch
from oracle import BOUNDS, draw, relative_error

from titan_motif.kernels.momentum import advance_momentum, apply_update

IMPLEMENTATIONS = ["torch", "triton"]
MU = 0.9


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (65, 100)], ids=str)
def test_momentum(device, shape, dtype, nesterov: bool, implementation: str):
    momentum, gradient = (draw(*shape, device=device, seed=seed) for seed in (1, 2))
    exact = MU * momentum.double() + gradient.double()
    exact_out = gradient.double() + MU * exact if nesterov else exact
    out = torch.full(shape, torch.nan, dtype=dtype, device=device)
    go = torch.ones((), device=device)
    advance_momentum(momentum, gradient, out, go, MU, nesterov, implementation)
    assert relative_error(momentum, exact) < BOUNDS[torch.float32]
    assert relative_error(out, exact_out) < BOUNDS[dtype]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_gradient_and_no_output(device, implementation: str):
    momentum = draw(5, 6, device=device, seed=1)
    before, go = momentum.double(), torch.ones((), device=device)
    out = torch.empty_like(momentum)
    advance_momentum(momentum, None, out, go, MU, True, implementation)
    assert relative_error(momentum, MU * before) < BOUNDS[torch.float32]
    assert relative_error(out, MU * MU * before) < BOUNDS[torch.float32]
    before, gradient = momentum.double(), draw(5, 6, device=device, seed=2)
    advance_momentum(momentum, gradient, None, go, MU, True, implementation)
    assert relative_error(momentum, MU * before + gradient.double()) < BOUNDS[torch.float32]
    advance_momentum(momentum[:0], None, None, go, MU, True, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_go_nothing_changes_whatever_the_gradient(device, implementation: str):
    momentum, parameter = (draw(9, 4, device=device, seed=seed) for seed in (1, 2))
    before, go = (momentum.clone(), parameter.clone()), torch.zeros((), device=device)
    gradient = torch.full_like(momentum, torch.nan)
    out = torch.empty_like(momentum)
    advance_momentum(momentum, gradient, out, go, MU, True, implementation)
    assert torch.equal(momentum, before[0])
    assert out.isfinite().all()
    apply_update(parameter, gradient, go, 0.1, 0.5, implementation)
    assert torch.equal(parameter, before[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_update(device, dtype, implementation: str):
    parameter = draw(50, 60, device=device, seed=1)
    update = draw(50, 60, device=device, dtype=dtype, seed=2)
    exact = 0.9 * parameter.double() - 0.5 * update.double()
    apply_update(parameter, update, torch.ones((), device=device), 0.1, 0.5, implementation)
    assert relative_error(parameter, exact) < BOUNDS[torch.float32]
