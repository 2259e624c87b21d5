"""Which part of a matrix each rank holds, read from the parameter itself."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from titan_motif.components.muon.plan import Matrix, Region


@dataclass(frozen=True)
class Family:
    """Parameters on one mesh, and so exchanged together."""

    parameters: tuple[Tensor, ...]
    matrices: tuple[Matrix, ...]
    replicas: tuple[tuple[int, ...], ...]
    """Ranks, by replica: between them those of one hold every matrix."""


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def families_of(parameters: Sequence[Tensor], rank: int) -> list[Family]:
    """Sort matrices by the mesh they lie on; plain tensors are this rank's own."""
    members: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        members.setdefault(mesh, []).append(parameter)
    families = []
    for mesh, found in members.items():
        if mesh is None:
            regions = [{rank: Region(0, p.shape[0], 0, p.shape[1])} for p in found]
            replicas = [[rank]]
        else:
            regions, replicas = [regions_of(p) for p in found], replicas_of(found)
        matrices = [Matrix(*p.shape, of) for p, of in zip(found, regions, strict=True)]
        families.append(Family(tuple(found), tuple(matrices), tuple(map(tuple, replicas))))
    return families


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


def replicas_of(parameters: Sequence[DTensor]) -> list[list[int]]:
    """Return the ranks of each replica of parameters on one mesh: between them they hold it all.

    Replicas lie along the axes of the mesh on which no parameter is cut.
    """
    mesh = parameters[0].device_mesh
    cut = {
        axis
        for parameter in parameters
        for axis, placement in enumerate(parameter.placements)
        if not placement.is_replicate()
    }
    replicas: dict[tuple[int, ...], list[int]] = {}
    for rank, coordinate in _coordinates(mesh.mesh):
        key = tuple(c for axis, c in enumerate(coordinate) if axis not in cut)
        replicas.setdefault(key, []).append(rank)
    return list(replicas.values())
