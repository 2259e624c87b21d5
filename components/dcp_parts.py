"""The parts that a tensor is saved in: whether any two of them share an element.

DCP's loaders fill a tensor with the parts that its metadata name, and look no further: where parts
lie over one another, some of its memory would never be filled, and hold what was there before.
Parts that are disjoint, within their tensor and together as large as it is cover it.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

_Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a part begins and ends, by dimension."""

_MAX_KNOT = 500
"""Parts that no straight cut divides, each of which is compared with each. The parts of meshes have
none such: a rank's part is cut straight through, one dimension after the other."""
_LOOKS = 50
"""At each part, before what is left is compared; 8 dimensions, cut 4 times each, need 32."""


def check_disjoint(parts: Sequence[ChunkStorageMetadata]) -> None:
    """Raise ValueError, a reason, if two parts share an element; they have as many dimensions.

    Exact, and of n parts in about n log(n) steps: parts are divided where a straight cut goes
    between them, until each is alone.
    Raises: ValueError too if more than 500 parts cross one another so that nothing divides them
    """
    boxes = [
        (tuple(part.offsets), tuple(b + n for b, n in zip(part.offsets, part.sizes, strict=True)))
        for part in parts
        if 0 not in part.sizes
    ]
    groups, looks = [boxes], _LOOKS * (len(boxes) + _MAX_KNOT)
    while groups:
        group = groups.pop()
        if len(group) < 2:
            continue
        divided = [group]
        for axis in range(len(group[0][0]) if looks > 0 else 0):
            looks -= len(group)
            divided = list(_divide(group, axis))
            if len(divided) > 1:
                break
        if len(divided) > 1:
            groups += divided
        elif len(group) > _MAX_KNOT:
            raise ValueError(f"{len(group):,} parts of a tensor cross one another")
        elif any(_share(*pair) for pair in combinations(group, 2)):
            raise ValueError("two parts of a tensor lie over one another")


def _divide(boxes: list[_Box], axis: int) -> Iterator[list[_Box]]:
    """Yield groups of boxes between which a cut across an axis goes through none."""
    boxes = sorted(boxes, key=lambda box: box[0][axis])
    first, reach = 0, boxes[0][1][axis]
    for i, (begin, end) in enumerate(boxes):
        if begin[axis] >= reach and i:
            yield boxes[first:i]
            first = i
        reach = max(reach, end[axis])
    yield boxes[first:]


def _share(one: _Box, other: _Box) -> bool:
    """Return whether two boxes share an element; those of no dimensions do."""
    return all(
        begin < end_of_other and begin_of_other < end
        for begin, end, begin_of_other, end_of_other in zip(*one, *other, strict=True)
    )
