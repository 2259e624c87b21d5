"""Whole samples packed into sequences, for fine-tuning; pre-training cuts its stream instead."""

import bisect
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return which samples go into which sequence, by best-fit decreasing.

    The longest sample first, each into the fullest sequence that has room for it
    (https://arxiv.org/abs/2404.10830). Equal lengths keep their order, so that the result depends
    on nothing but the lengths.

    Raises: ValueError naming a sample that is empty, or longer than a sequence
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room, bin), sorted
    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        length = lengths[sample]
        if not 1 <= length <= capacity:
            raise ValueError(f"sample {sample} has {length} tokens; 1 to {capacity} are needed")
        place = bisect.bisect_left(rooms, (length, 0))
        if place == len(rooms):
            bins.append([])
            room, chosen = capacity, len(bins) - 1
        else:
            room, chosen = rooms.pop(place)
        bins[chosen].append(sample)
        if room > length:
            bisect.insort(rooms, (room - length, chosen))
    return bins


def padding_share(lengths: Sequence[int], bins: Sequence[Sequence[int]], capacity: int) -> float:
    """Return the share of the packed tokens that hold nothing."""
    total = len(bins) * capacity
    return (
        1 - sum(lengths[sample] for packed in bins for sample in packed) / total if total else 0.0
    )
