"""The kernels' norms for plain tensors and for DTensors: unwrap, call, wrap by placement.

A kernel knows nothing of meshes, and a sharding rule cannot hold a collective in its middle. So the
operators run on local tensors here, and where a reduction crosses ranks it stands between them.
Only what tensor parallelism needs is served: a one-dimensional mesh, one placement.
"""

import math

import torch
from torch import Tensor
from torch.distributed._functional_collectives import all_reduce, wait_tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from titan_motif import kernels
from titan_motif.kernels import Implementation


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, implementation: Implementation = "auto"
) -> Tensor:
    """Return kernels.rms_norm of x, laid out like x.

    Shapes: x (..., width), a DTensor may be sharded on any dimension but the last; weight (width,),
            replicated; its gradient is partial wherever x is sharded
    """
    if not isinstance(x, DTensor):
        return kernels.rms_norm(x, weight, eps, implementation)
    placement = _placement(x)
    assert not _is_row_cut(x, placement), "rms_norm needs whole rows"
    local = kernels.rms_norm(x.to_local(), _local_weight(weight, placement), eps, implementation)
    return _like(local, x)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, implementation: Implementation = "auto"
) -> tuple[Tensor, Tensor]:
    """Return kernels.add_rms_norm of x and residual, which lie alike: the norm, and the sum.

    Shapes: as rms_norm's
    """
    if not isinstance(x, DTensor):
        return kernels.add_rms_norm(x, residual, weight, eps, implementation)
    placement = _placement(x, residual)
    assert not _is_row_cut(x, placement), "add_rms_norm needs whole rows"
    normed, total = kernels.add_rms_norm(
        x.to_local(), residual.to_local(), _local_weight(weight, placement), eps, implementation
    )
    return _like(normed, x), _like(total, x)


def poly_norm_mul(
    x: Tensor,
    up: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return kernels.poly_norm_mul, laid out like x; rows that are cut meet in one all-reduce.

    Shapes: x, up (..., width), DTensors may be sharded on any dimension, the last included;
            weight (3,), bias (1,): plain tensors whose gradients are this rank's part
    """
    if not isinstance(x, DTensor):
        return kernels.poly_norm_mul(x, up, weight, bias, eps, implementation)
    placement = _placement(x, up)
    local, local_up = x.to_local(), up.to_local()
    if not _is_row_cut(x, placement):
        out = kernels.poly_norm_mul(local, local_up, weight, bias, eps, implementation)
        return _like(out, x)
    part = kernels.poly_norm_power_sums(local, implementation)
    power_sums = _SumOverRanks.apply(part, x.device_mesh)
    out = kernels.poly_norm_mul_given_sums(
        local, local_up, power_sums, x.shape[-1], weight, bias, eps, implementation
    )
    return _like(out, x)


def _placement(x: DTensor, *others: DTensor) -> Shard | Replicate:
    """Return where x lies, after making sure that it can be served and the others lie alike."""
    assert len(x.placements) == 1, "a one-dimensional mesh is needed"
    (placement,) = x.placements
    assert not placement.is_partial(), "what is not summed yet has no norm"
    assert all(other.placements == x.placements for other in others), "inputs must lie alike"
    return placement


def _is_row_cut(x: DTensor, placement: Shard | Replicate) -> bool:
    return placement.is_shard(x.ndim - 1) or placement.is_shard(-1)


def _local_weight(weight: Tensor, placement: Shard | Replicate) -> Tensor:
    """A replicated weight, whose gradient on this rank covers this rank's rows alone."""
    if not isinstance(weight, DTensor):
        return weight
    return weight.to_local(grad_placements=[Partial() if placement.is_shard() else Replicate()])


class _SumOverRanks(torch.autograd.Function):
    """An all-reduce both ways: every rank uses the sum for its own part, so gradients add up too.

    Written out, since what a DTensor does in the backward pass of such a sum has changed between
    releases of PyTorch.
    """

    @staticmethod
    def forward(ctx, part: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.mesh = mesh
        return _all_reduce(part, mesh)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grad, ctx.mesh), None


def _all_reduce(part: Tensor, mesh: DeviceMesh) -> Tensor:
    return wait_tensor(all_reduce(part.contiguous(), "sum", mesh.get_group()))


def _like(local: Tensor, x: DTensor) -> DTensor:
    stride = tuple(math.prod(x.shape[dim + 1 :]) for dim in range(x.ndim))  # contiguous
    return DTensor.from_local(
        local, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=stride
    )
