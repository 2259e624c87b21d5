"""`titan-motif bench poly-norm`."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from titan_motif import kernels
from titan_motif.bench.norms import EPS, NormOptions, Subject, compare


@dataclass
class Options(NormOptions):
    """Measure PolyNorm, alone and times the up projection, forward and backward.

    Example: titan-motif bench poly-norm --widths 5120 16384 --tokens 2048 16384 --json table.json
    """


def main(options: Options) -> None:
    """Measure PolyNorm, alone and multiplied."""
    compare(SUBJECTS, options, gpu_shape=(16384, 16384))


def _plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The formula as one would write it: naive PyTorch."""
    wide = x.to(weight.dtype)

    def normalized(z: Tensor) -> Tensor:
        return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + EPS)

    terms = [w * normalized(wide**p) for w, p in zip(weight, (3, 2, 1), strict=True)]
    return sum(terms) + bias


def _plain_poly_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _plain(x, weight, bias).to(x.dtype)


def _plain_poly_norm_mul(x: Tensor, up: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (_plain(x, weight, bias) * up).to(x.dtype)


def _parameters(width: int) -> list[Tensor]:
    return [torch.tensor([0.4, 0.3, 0.35]).double(), torch.tensor([0.1]).double()]


SUBJECTS = (
    Subject(
        name="poly_norm",
        activations=("x",),
        num_outputs=1,
        parameters=_parameters,
        plain=_plain_poly_norm,
        ours=partial(kernels.poly_norm, eps=EPS),
        forward_transfers=2,
        backward_transfers=3,
    ),
    Subject(
        name="poly_norm_mul",
        activations=("x", "up"),
        num_outputs=1,
        parameters=_parameters,
        plain=_plain_poly_norm_mul,
        ours=partial(kernels.poly_norm_mul, eps=EPS),
        forward_transfers=3,
        backward_transfers=5,
    ),
)
