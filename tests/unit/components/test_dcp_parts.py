"""Parts of a tensor: whether any two share an element is told exactly, and fast."""

import random
import time
from itertools import pairwise, product

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from titan_motif.components.dcp_parts import check_disjoint


def part(offsets: list[int], sizes: list[int]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def grid(*cuts: list[int]) -> list[ChunkStorageMetadata]:
    """Return parts cut through by all of the cuts, as sharding by several dimensions does."""
    cells = product(*map(pairwise, cuts))
    return [part([b for b, _ in cell], [e - b for b, e in cell]) for cell in cells]


def pinwheel(at: int) -> list[ChunkStorageMetadata]:
    """Return five parts of 3 x 3 that no straight cut divides."""
    arms = (([0, 0], [1, 2]), ([0, 2], [2, 1]), ([2, 1], [1, 2]), ([1, 0], [2, 1]))
    return [part([at + y, x], sizes) for (y, x), sizes in (*arms, ([1, 1], [1, 1]))]


VALID = {
    "none": [],
    "a number": [part([], [])],
    "whole": [part([0, 0], [5, 7])],
    "uneven shards": grid([0, 3, 6, 7], [0, 4]),
    "shards of which some are empty": [*grid([0, 2, 4, 5]), part([5], [0]), part([5], [0])],
    "an empty shard within another": [*grid([0, 4]), part([2], [0])],
    "a tensor without elements": [part([0, 0], [0, 4]), part([0, 0], [0, 4])],
    "data and tensor parallel": grid([0, 3, 6, 8], [0, 2, 4]),
    "a dimension cut twice": [*grid([0, 2, 3], [0, 4]), *grid([3, 5, 7], [0, 1, 4])],
    "rows cut otherwise than those below": [*grid([0, 2], [0, 3, 9]), *grid([2, 4], [0, 4, 9])],
    "three dimensions": grid([0, 1, 2], [0, 3, 4], [0, 2, 5]),
    "a pinwheel": pinwheel(0),
    "pinwheels below one another": [p for at in range(0, 30, 3) for p in pinwheel(at)],
}
INVALID = {
    "a half twice": [part([0], [2]), part([0], [2])],
    "two numbers": [part([], []), part([], [])],
    "by one element": [part([0, 0], [3, 3]), part([2, 2], [3, 3])],
    "one within another": [*grid([0, 4, 8], [0, 8]), part([5, 1], [1, 1])],
    "a cross": [part([0, 2], [5, 1]), part([2, 0], [1, 5])],
    "a cell of a grid": [*grid([0, 3, 6, 8], [0, 2, 4]), part([4, 1], [1, 1])],
    "a pinwheel's middle": [*pinwheel(0), part([1, 1], [1, 1])],
}


@pytest.mark.parametrize("parts", VALID.values(), ids=VALID)
def test_parts_that_share_nothing_are_held_for_disjoint(parts: list[ChunkStorageMetadata]):
    for order in range(5):
        check_disjoint(random.Random(order).sample(parts, len(parts)))


@pytest.mark.parametrize("parts", INVALID.values(), ids=INVALID)
def test_parts_that_share_an_element_are_refused(parts: list[ChunkStorageMetadata]):
    for order in range(5):
        with pytest.raises(ValueError, match="two parts of a tensor lie over one another"):
            check_disjoint(random.Random(order).sample(parts, len(parts)))


def elements(one: ChunkStorageMetadata) -> list[tuple[int, ...]]:
    return list(product(*(range(b, b + n) for b, n in zip(one.offsets, one.sizes, strict=True))))


def test_random_parts_are_told_as_counting_their_elements_tells():
    draw, outcomes = random.Random(0), [0, 0]
    for _ in range(500):
        dims = draw.randint(0, 3)
        parts = [
            part([draw.randint(0, 4) for _ in range(dims)], [draw.randint(0, 2)] * dims)
            for _ in range(draw.randint(0, 6))
        ]
        held = [element for one in parts for element in elements(one)]
        expected, found = len(held) == len(set(held)), True
        try:
            check_disjoint(parts)
        except ValueError:
            found = False
        assert found == expected, parts
        outcomes[found] += 1
    assert min(outcomes) > 50


@pytest.mark.parametrize("parts", [grid([*range(4097)], [0, 9]), grid([*range(257)], [*range(9)])])
def test_thousands_of_parts_take_a_moment(parts: list[ChunkStorageMetadata]):
    random.Random(0).shuffle(parts)
    begin = time.process_time()
    check_disjoint(parts)
    assert time.process_time() - begin < 2


def test_parts_that_nothing_divides_end_soon():
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"5,000 parts of a tensor cross one another"):
        check_disjoint([part([0, i], [i + 1, 5000 - i]) for i in range(5000)])
    assert time.process_time() - begin < 2
