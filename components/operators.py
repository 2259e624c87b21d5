"""The kernels' norms for plain tensors and for DTensors: unwrap, call, wrap by placement.

A kernel knows nothing of meshes, and a sharding rule cannot hold a collective in its middle. So the
operators run on local tensors here, and where a reduction crosses ranks it stands between them.
Only what tensor parallelism needs is served: a one-dimensional mesh, one placement.
"""

from torch import Tensor
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
    assert _last_shard(x) is None, "rms_norm needs whole rows"
    local = kernels.rms_norm(x.to_local(), _local_weight(weight, x), eps, implementation)
    return _like(local, x)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, implementation: Implementation = "auto"
) -> tuple[Tensor, Tensor]:
    """Return kernels.add_rms_norm of x and residual, which lie alike: the norm, and the sum.

    Shapes: as rms_norm's
    """
    if not isinstance(x, DTensor):
        return kernels.add_rms_norm(x, residual, weight, eps, implementation)
    assert x.placements == residual.placements, "the residual must lie like x"
    assert _last_shard(x) is None, "add_rms_norm needs whole rows"
    normed, total = kernels.add_rms_norm(
        x.to_local(), residual.to_local(), _local_weight(weight, x), eps, implementation
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
    local, local_up = x.to_local(), up.to_local()
    if _last_shard(x) is None:
        out = kernels.poly_norm_mul(local, local_up, weight, bias, eps, implementation)
        return _like(out, x)
    power_sums = _sum_over_ranks(kernels.poly_norm_power_sums(local, implementation), x)
    out = kernels.poly_norm_mul_given_sums(
        local, local_up, power_sums, x.shape[-1], weight, bias, eps, implementation
    )
    return _like(out, x)


def _last_shard(x: DTensor) -> Shard | None:
    (placement,) = x.placements
    return placement if placement.is_shard(x.ndim - 1) or placement.is_shard(-1) else None


def _local_weight(weight: Tensor, x: DTensor) -> Tensor:
    """A replicated weight, whose gradient on this rank covers this rank's rows alone."""
    if not isinstance(weight, DTensor):
        return weight
    (placement,) = x.placements
    return weight.to_local(grad_placements=[Partial() if placement.is_shard() else Replicate()])


def _sum_over_ranks(part: Tensor, x: DTensor) -> Tensor:
    """Sum over x's mesh; every rank uses the sum for its own part, so the gradient sums too."""
    partial = DTensor.from_local(part, x.device_mesh, [Partial()], run_check=False)
    total = partial.redistribute(placements=[Replicate()])
    return total.to_local(grad_placements=[Partial()])


def _like(local: Tensor, x: DTensor) -> DTensor:
    return DTensor.from_local(
        local, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
    )
