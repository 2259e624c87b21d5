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
            is_exact = all(n & (n - 1) == 0 for n in set(axis.copies))
            kind = grown.dtype if is_exact else torch.promote_types(grown.dtype, torch.float32)
            copies = torch.tensor(axis.copies, dtype=kind).repeat_interleave(axis.unit)
            grown = grown / copies if dim == grown.ndim - 1 else grown / copies[:, None]
    if origin.divisor != 1:
        grown = grown.to(torch.promote_types(grown.dtype, torch.float32)) / origin.divisor
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
    """Add noise in place, +N and -N to two copies of each column that a product sums.

    Copies of one column meet equal inputs, so that the noise changes no output; but each copy now
    receives another gradient, and they part. N is cut to the weight's size and rounded so that both
    sums are numbers of the tensor's dtype: in every dtype they add up to what they were, exactly.
    Of an odd number of copies the last one stays as it is.

    Equation: 20 log10(rms(grown) / rms(noise)) = snr_db, before the cut
    """
    if origin.is_zero or grown.ndim != 2:
        return
    axis = origin.axes[1]
    if not axis.is_read or max(axis.copies) == 1:
        return
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    first, second = _pairs(element_index(axis))
    std = _rms(grown) * 10 ** (-snr_db / 20)
    for rows in grown.split(ROWS):
        weights = rows[:, first].double()
        unit = _last_place(weights, grown.dtype)
        noise = torch.randn(weights.shape, generator=generator, dtype=torch.float64) * std
        steps, whole = (noise / unit).round(), weights / unit
        steps = torch.where(steps.abs() > whole.abs(), whole.copysign(noise), steps)
        # An even sum is a number of the dtype even where it reaches the next power of two.
        is_odd = (steps + whole.remainder(2)).remainder(2) != 0
        steps = torch.where(is_odd, steps - torch.ones_like(steps).copysign(steps), steps)
        rows[:, first] = (weights + steps * unit).to(grown.dtype)
        rows[:, second] = (weights - steps * unit).to(grown.dtype)


def _pairs(index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the first and of the second of each pair of copies."""
    order = index.argsort(stable=True)
    sources = index[order]
    begins = torch.searchsorted(sources, sources)
    place = torch.arange(len(order)) - begins  # which copy of its source it is
    counts = torch.bincount(index)[sources]
    is_first = (place % 2 == 0) & (place + 1 < counts)
    at = is_first.nonzero().flatten()
    return order[at], order[at + 1]


def _last_place(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the value of the last binary place of each weight as a number of a dtype."""
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))
    return torch.ldexp(torch.ones_like(weights), torch.frexp(weights).exponent - digits)


ROWS = 512
"""Rows that noise is drawn for at once: a large matrix has no float64 copy."""


def _rms(tensor: Tensor) -> float:
    total = sum(float(part.double().square().sum()) for part in tensor.split(ROWS))
    return math.sqrt(total / tensor.numel())
