"""Whole samples packed into sequences, for fine-tuning; pre-training cuts its stream instead."""

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torchtitan.components.loss import IGNORE_INDEX

from titan_motif.components.sft.template import Sample

LEARNT = np.uint32(1 << 31)
"""Set in a spooled token that the assistant wrote."""


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


def spool_sample(sample: Sample, out: BinaryIO) -> float:
    """Write a sample's tokens, and return its hash as a number from 0 to 1."""
    tokens = sample.tokens.astype(np.uint32)
    digest = hashlib.sha256(tokens.tobytes()).digest()
    out.write((tokens | LEARNT * sample.is_learnt).astype(np.uint32).tobytes())
    return int.from_bytes(digest[:6]) / 2**48


def hold_out(hashes: np.ndarray, share: float) -> np.ndarray:  # (samples,) each
    """Choose what is held out: equal samples go together; at least one stays, and one goes."""
    held_out = hashes < share
    if share > 0 and hashes.min() < hashes.max():
        held_out |= hashes == hashes.min()
        held_out &= hashes < hashes.max()
    elif hashes.min() == hashes.max():
        held_out[:] = False
    return held_out


@dataclass(frozen=True)
class Packed:
    """The sequences of a split: which spooled samples each of them holds."""

    spooled: np.ndarray  # (tokens,) of all samples
    begins: np.ndarray  # (samples,) where each begins
    lengths: np.ndarray  # (samples,)
    sequences: list[list[int]]
    """The samples of each."""
    seq_len: int


def pack(spooled: np.ndarray, lengths: np.ndarray, chosen: np.ndarray, seq_len: int) -> Packed:
    """Return the chosen samples in sequences, by best fit."""
    begins = np.cumsum(lengths) - lengths
    bins = best_fit(lengths[chosen].tolist(), seq_len)
    return Packed(spooled, begins, lengths, [chosen[x].tolist() for x in bins], seq_len)


def write_split(folder: Path, packed: Packed, filling: int, dtype: np.dtype) -> dict[str, int]:
    """Write the sequences of a split; return its counts."""
    folder.mkdir()
    size = len(packed.sequences) * packed.seq_len
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", dtype, (size,))
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.int32, (size,))
    offsets, learnt, filled = [0], 0, 0
    for number, samples in enumerate(packed.sequences):
        place, end = number * packed.seq_len, (number + 1) * packed.seq_len
        tokens[place:end], labels[place:end] = filling, IGNORE_INDEX
        for sample in samples:
            begin, length = packed.begins[sample], packed.lengths[sample]
            found = packed.spooled[begin : begin + length]
            ids, is_learnt = found & ~LEARNT, (found & LEARNT) != 0
            tokens[place : place + length] = ids
            following = np.where(is_learnt[1:], ids[1:].astype(np.int32), IGNORE_INDEX)
            labels[place : place + length - 1] = following
            learnt += int(is_learnt[1:].sum())
            place += int(length)
            offsets.append(place)
        if place < end:
            filled += end - place
            offsets.append(end)
    np.save(folder / "document_offsets.npy", np.array(offsets, dtype=np.int64))
    tokens.flush()
    labels.flush()
    return {
        "documents": sum(map(len, packed.sequences)),
        "tokens": size,
        "sequences": len(packed.sequences),
        "learnt": learnt,
        "filling": filled,
    }
