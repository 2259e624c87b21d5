"""`titan-motif bench rms-norm`."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from titan_motif import kernels
from titan_motif.bench.norms import EPS, NormOptions, Subject, compare


@dataclass
class Options(NormOptions):
    """Measure RMSNorm, alone and after an addition, forward and backward.

    Example: titan-motif bench rms-norm --widths 4096 --tokens 65536 --json table.json
    """


def main(options: Options) -> None:
    """Measure RMSNorm, alone and after an addition."""
    compare(SUBJECTS, options, gpu_shape=(65536, 4096))


def _plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(weight.dtype)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * weight).to(x.dtype)


def _plain_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _plain_rms_norm(total, weight), total


def _parameters(width: int) -> list[Tensor]:
    return [torch.linspace(0.5, 1.5, width, dtype=torch.float64)]


SUBJECTS = (
    Subject(
        name="rms_norm",
        activations=("x",),
        num_outputs=1,
        parameters=_parameters,
        plain=_plain_rms_norm,
        ours=partial(kernels.rms_norm, eps=EPS),
        forward_transfers=2,
        backward_transfers=3,
    ),
    Subject(
        name="add_rms_norm",
        activations=("x", "residual"),
        num_outputs=2,
        parameters=_parameters,
        plain=_plain_add_rms_norm,
        ours=partial(kernels.add_rms_norm, eps=EPS),
        forward_transfers=4,
        backward_transfers=4,
    ),
)
