"""Which part of a matrix each rank holds, read from the parameter itself."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard


class Region(NamedTuple):
    """A rectangle of a matrix: rows and columns, each from one index to before another."""

    row_begin: int
    row_end: int
    column_begin: int
    column_end: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.row_end - self.row_begin, self.column_end - self.column_begin

    def of(self, matrix: Tensor) -> Tensor:
        """Return this region's view of a whole matrix."""
        return matrix[self.row_begin : self.row_end, self.column_begin : self.column_end]


def regions_of(parameter: Tensor) -> dict[int, Region]:
    """Return the region that each rank of the parameter's mesh holds; by global rank.

    FSDP, even, uneven and empty; HSDP (replicas hold equal regions); tensor parallel; FSDP over
    tensor parallel, which cuts what tensor parallelism has left: always one rectangle.

    Raises: ValueError if the parameter is no matrix, no DTensor, or holds partial sums
    """
    if parameter.ndim != 2:
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)}; a matrix is needed")
    if not isinstance(parameter, DTensor):
        raise ValueError("a plain tensor, whose ranks are not known; a DTensor is needed")
    mesh, placements = parameter.device_mesh, parameter.placements
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"{placements}: partial sums have no region")
    cutting_axes = [_cutting_axes(placements, dim) for dim in (0, 1)]
    regions = {}
    for rank, coordinate in _coordinates(mesh.mesh):
        bounds: list[int] = []
        for dim, axes in enumerate(cutting_axes):
            begin, end = 0, parameter.shape[dim]
            for axis in axes:
                begin, end = _chunk(begin, end, coordinate[axis], mesh.size(axis))
            bounds += [begin, end]
        regions[rank] = Region(*bounds)
    return regions


def _cutting_axes(placements: Sequence[Placement], dim: int) -> list[int]:
    """Return the axes of the mesh that cut a tensor's dimension, the first cut first.

    A strided shard (FSDP over tensor parallel) cuts what the axes to its right have left.
    """
    shards = (Shard, _StridedShard)  # neither is the other
    axes = [
        axis
        for axis, placement in enumerate(placements)
        if isinstance(placement, shards) and placement.dim % 2 == dim
    ]
    strided = [axis for axis in axes if isinstance(placements[axis], _StridedShard)]
    return [axis for axis in axes if axis not in strided] + strided[::-1]


def _coordinates(ranks: Tensor) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield every global rank of a mesh with its coordinate."""
    for coordinate in itertools.product(*map(range, ranks.shape)):
        yield int(ranks[coordinate]), coordinate


def _chunk(begin: int, end: int, index: int, count: int) -> tuple[int, int]:
    """Return the index-th of `count` parts, as torch.chunk cuts them: the last may be empty."""
    size = -(-(end - begin) // count)
    first = min(begin + index * size, end)
    return first, min(first + size, end)
