"""Tensors of a large model from those of a small one, and noise that changes no sum."""

import hashlib
import math

import torch
from torch import Tensor

from titan_motif.growth.mapping import Axis, Origin


@torch.no_grad()
def grow_tensor(origin: Origin, source: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of the large model.

    Divided in float32 at least, and rounded once; by powers of two nothing is rounded.
    """
    shape = [len(axis.index) * axis.unit for axis in origin.axes]
    if origin.is_zero:
        return torch.zeros(shape, dtype=dtype)
    grown = source
    for dim, axis in enumerate(origin.axes):
        if not axis.is_unchanged:
            grown = grown.index_select(dim, element_index(axis))
        if axis.is_read and max(axis.copies) > 1:
            copies = torch.tensor(axis.copies, dtype=grown.dtype).repeat_interleave(axis.unit)
            grown = grown / copies if dim == grown.ndim - 1 else grown / copies[:, None]
    if origin.divisor != 1:
        grown = grown / origin.divisor
    return grown.to(dtype)


@torch.no_grad()
def grow_moment(origin: Origin, source: Tensor, power: int) -> Tensor:
    """Return a moment of a large tensor's gradients from that of the small one's.

    What a copied output feeds is divided by its copies, and so is its gradient; copied inputs see
    the gradient whole. Of an inserted block nothing is known: zeros, as of an inserted tensor.

    Equation: the moment of g^power, of a gradient that is a factor of the small one's
    Departs:  where copied keys serve other groups each, theirs are the mean of what they would be
    """
    shape = [len(axis.index) * axis.unit for axis in origin.axes]
    if origin.is_new:
        return torch.zeros(shape, dtype=source.dtype)
    grown = source
    for dim, axis in enumerate(origin.axes):
        if axis.is_unchanged:
            continue
        grown = grown.index_select(dim, element_index(axis))
        if not axis.is_read:
            copies = torch.tensor(axis.copies, dtype=grown.dtype).repeat_interleave(axis.unit)
            grown = grown / (copies**power if dim == grown.ndim - 1 else copies[:, None] ** power)
    return grown * origin.divisor**power


def element_index(axis: Axis) -> Tensor:
    """Return, of each large row or column, the small one's."""
    units = torch.tensor(axis.index)[:, None] * axis.unit
    return (units + torch.arange(axis.unit)).flatten()


@torch.no_grad()
def add_paired_noise(grown: Tensor, origin: Origin, name: str, seed: int, snr_db: float) -> None:
    """Add noise in place that cancels over the copies of each column that a product sums.

    Copies of one column meet equal inputs, so that noise which sums to zero over them changes no
    output; but each copy now receives another gradient, and they part. What is added, rounded to
    the tensor's dtype, cancels but for that rounding.

    Equation: 20 log10(rms(grown) / rms(noise)) = snr_db
    """
    if origin.is_zero or grown.ndim != 2:
        return
    axis = origin.axes[1]
    if not axis.is_read or max(axis.copies) == 1:
        return
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    index = element_index(axis)
    copies = torch.tensor(axis.copies).repeat_interleave(axis.unit)
    rms = _rms(grown)
    num_small = int(index.max()) + 1
    for begin in range(0, len(grown), ROWS):
        rows = grown[begin : begin + ROWS]
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        sums = torch.zeros(len(rows), num_small, dtype=torch.float64).index_add_(1, index, noise)
        noise -= sums.index_select(1, index) / copies
        # What is left of it after the mean of n copies is taken off has 1 - 1/n of its variance.
        noise *= (1 / (1 - 1 / copies.clamp(min=2))).sqrt()
        rows += (noise * rms * 10 ** (-snr_db / 20)).to(rows.dtype)


ROWS = 512
"""Rows that noise is drawn for at once: a large matrix has no float64 copy."""


def _rms(tensor: Tensor) -> float:
    total = sum(float(part.double().square().sum()) for part in tensor.split(ROWS))
    return math.sqrt(total / tensor.numel())
