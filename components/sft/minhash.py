"""Near duplicates: pairs of sets that have most of their members in common, found by MinHash.

    J(A, B) = |A and B| / |A or B|                       Jaccard similarity
    P(the smallest of a hash over A is that over B) = J  MinHash, Broder 1997
    P(a pair is found) = 1 - (1 - J^r)^b                 b bands of r hashes (locality-sensitive)

What the bands find is verified by J itself, so that they decide what is missed alone.

Why not a library's: datasketch does the same, and brings scipy, 35 MB to download, which nothing
else here needs; its sets are Python objects, where these are arrays that may lie on the disk.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

NUM_HASHES = 128
"""An estimate of J by so many has a standard deviation of at most 0.044."""
MIN_RECALL = 0.99
"""Of pairs at the threshold itself; more similar ones are found more often."""
_SLACK = 0.1
"""Candidates whose estimate is further than that under the threshold are not verified: of pairs at
a threshold of 0.8, 2.8 standard deviations, or two in a thousand."""

_GENERATOR = np.random.Generator(np.random.PCG64(20251107))
_FACTORS = _GENERATOR.integers(0, 1 << 63, NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(
    1
)
_TERMS = _GENERATOR.integers(0, 1 << 63, NUM_HASHES, dtype=np.uint64)
_BLOCK = 4096
"""Members that are hashed at once."""


class Repeat(NamedTuple):
    """A set that repeats another."""

    of: int
    similarity: float


def signature(members: np.ndarray) -> np.ndarray:  # (members,) uint64 -> (NUM_HASHES,) uint32
    """Return the smallest values of NUM_HASHES hashes over a set that is not empty."""
    smallest = np.full(NUM_HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
    for begin in range(0, len(members), _BLOCK):
        block = members[begin : begin + _BLOCK, None]
        np.minimum(smallest, (block * _FACTORS + _TERMS).min(axis=0), out=smallest)
    return (smallest >> np.uint64(32)).astype(np.uint32)


def similarities(own: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:  # (others,) float64
    """Return J of a set and of each of the others, all sorted, of distinct members, not empty."""
    sizes = np.array([len(other) for other in others])
    joined = np.concatenate(others)
    nearest = np.minimum(np.searchsorted(own, joined), len(own) - 1)
    common = np.add.reduceat((own[nearest] == joined).astype(np.int64), np.cumsum(sizes) - sizes)
    return common / (len(own) + sizes - common)


def band_rows(threshold: float) -> int:
    """Return the most hashes a band at which a pair at the threshold is found with MIN_RECALL."""

    def recall(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (NUM_HASHES // rows)

    return max((rows for rows in range(1, 33) if recall(rows) >= MIN_RECALL), default=1)


def find_repeats(
    signatures: np.ndarray,  # (sets, NUM_HASHES) uint32
    members: Callable[[int], np.ndarray],
    threshold: float,
    order: Sequence[int] | np.ndarray,
    advance: Callable[[int], None] = lambda number: None,
) -> dict[int, Repeat]:
    """Return the sets to leave out, each with the most similar of those that stay.

    In the given order a set stays unless it is at least as similar as the threshold to one that
    stays already. So whatever is left out repeats something that is there, and no chain of small
    differences leaves out what is unlike all that stays.

    Args:
        members: of a set by its number, sorted and distinct
        advance: told the number of every set that is done
    """
    buckets = _buckets(signatures, band_rows(threshold))
    staying: dict[tuple[int, int], array[int]] = {}
    repeats: dict[int, Repeat] = {}
    places = np.empty(len(signatures), dtype=np.int64)
    for number in map(int, order):
        keys = [(band, key) for band, key in enumerate(buckets[number].tolist()) if key >= 0]
        found = [np.array(staying[key]) for key in keys if key in staying]
        best = None
        if found:
            candidates = _distinct(np.concatenate(found), places)
            estimates = (signatures[candidates] == signatures[number]).mean(axis=1)
            likely = np.sort(candidates[estimates >= threshold - _SLACK]).tolist()
            best = _best(members(number), likely, [members(one) for one in likely])
        if best is not None and best.similarity >= threshold:
            repeats[number] = best
        else:
            for key in keys:
                staying.setdefault(key, array("q")).append(number)
        advance(number)
    return repeats


def _distinct(numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return each number once, without sorting: many candidates stand in several bands."""
    indices = np.arange(len(numbers))
    places[numbers] = indices  # of the same number, one of its indices stays
    return numbers[places[numbers] == indices]


def _best(own: np.ndarray, numbers: Sequence[int], others: Sequence[np.ndarray]) -> Repeat | None:
    """Return the most similar of some sets, the first of equal ones."""
    if not others:
        return None
    found = similarities(own, others)
    index = int(found.argmax())
    return Repeat(numbers[index], float(found[index]))


def _buckets(signatures: np.ndarray, rows: int) -> np.ndarray:  # (sets, bands) int64
    """Return the bucket of each set in each band; -1 where nothing else is in it."""
    num_bands = NUM_HASHES // rows
    buckets = np.empty((len(signatures), num_bands), dtype=np.int64)
    for band in range(num_bands):
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        whole = part.view(np.dtype((np.void, part.itemsize * rows))).ravel()
        _, bucket, counts = np.unique(whole, return_inverse=True, return_counts=True)
        buckets[:, band] = np.where(counts[bucket] > 1, bucket, -1)
    return buckets
