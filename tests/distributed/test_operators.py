"""The norms on activations that are cut over ranks: one rank's values and gradients."""

import pytest
import torch

BATCH, SEQ, WIDTH = 2, 6, 48
PARTIAL_WEIGHTS = ("weight", "poly_weight", "poly_bias")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) + 0.5

    activations = {n: draw(BATCH, SEQ, WIDTH) for n in ("x", "other", "dout", "dsum")}
    return activations | {
        "weight": draw(WIDTH),
        "poly_weight": torch.tensor([0.7, -0.4, 0.5]),
        "poly_bias": torch.tensor([0.3]),
    }


def gradients_of(operator: str, cut_dim: int) -> dict[str, torch.Tensor]:
    """Gathered outputs and gradients of an operator whose activations are cut along a dimension."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    from titan_motif.components import operators

    world_size = torch.distributed.get_world_size()
    mesh = init_device_mesh("cpu", (world_size,))
    given = tensors()
    for name in ("x", "other", "dout", "dsum"):
        given[name] = distribute_tensor(given[name], mesh, [Shard(cut_dim)])
    given["weight"] = distribute_tensor(given["weight"], mesh, [Replicate()])
    names = {
        "rms_norm": ("x", "weight"),
        "add_rms_norm": ("x", "other", "weight"),
        "poly_norm_mul": ("x", "other", "poly_weight", "poly_bias"),
    }[operator]
    leaves = {name: given[name].detach().requires_grad_() for name in names}
    outputs = getattr(operators, operator)(*leaves.values(), 1e-2)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    out_gradients = [given["dout"], given["dsum"]][: len(outputs)]
    found = dict(enumerate(outputs))
    found |= zip(
        names, torch.autograd.grad(outputs, [*leaves.values()], out_gradients), strict=True
    )
    for name, tensor in found.items():
        if isinstance(tensor, DTensor):
            found[name] = tensor.full_tensor().detach()
        else:  # plain parameters hold a part of their gradient on each rank
            assert name in PARTIAL_WEIGHTS
            torch.distributed.all_reduce(tensor)
    return found


def refusals() -> list[str]:
    """What is said of activations that lie as no norm can use them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    from titan_motif.components import operators

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))

    def lying(placement) -> DTensor:
        return DTensor.from_local(torch.ones(2, 4), mesh, [placement], run_check=False)

    weight, poly = torch.ones(4), (torch.ones(3), torch.ones(1))
    calls = [
        lambda: operators.rms_norm(lying(Partial()), weight, 1e-6),
        lambda: operators.rms_norm(lying(Shard(1)), weight, 1e-6),
        lambda: operators.add_rms_norm(lying(Shard(0)), lying(Replicate()), weight, 1e-6),
        lambda: operators.poly_norm_mul(lying(Replicate()), lying(Partial()), *poly, 1e-6),
    ]
    said = []
    for call in calls:
        try:
            call()
        except AssertionError as error:
            said.append(str(error))
    return said


def test_activations_that_no_norm_can_use_are_not_computed(rank_pool):
    expected = [
        "what is not summed yet has no norm",
        "rms_norm needs whole rows",
        "inputs must lie alike",
        "inputs must lie alike",
    ]
    assert rank_pool.run(refusals, 2) == [expected] * 2


@pytest.mark.parametrize(
    ("operator", "cut_dim"),
    [
        ("rms_norm", 1),  # rows cut: sequence parallel
        ("add_rms_norm", 1),
        ("poly_norm_mul", 1),
        ("poly_norm_mul", 2),  # each row cut: its three sums meet
    ],
)
def test_two_ranks_equal_one(rank_pool, operator: str, cut_dim: int):
    (expected,) = rank_pool.run(gradients_of, 1, operator, cut_dim)
    for found in rank_pool.run(gradients_of, 2, operator, cut_dim):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            error = (found[name] - tensor).norm() / tensor.norm()
            assert error < 1e-6, name
