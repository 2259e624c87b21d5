"""The tokens of all units as a source: duplicates out, a part held out, the rest shuffled.

Per document a few numbers are held in memory, of the tokens a unit's at most: they are copied from
one mapped file to another.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from titan_motif.components.preparation.tokenize_units import DOCUMENT, UnitResult
from titan_motif.components.progress import byte_progress

SPLITS = ("train", "validation")
_NOWHERE = -1


class Selection(NamedTuple):
    """Which documents go where; a text's number is its place among all texts by their hash."""

    is_kept: np.ndarray  # (documents,) bool
    is_held_out: np.ndarray  # (documents,) bool
    num_duplicates: int
    """Documents whose text came before, whether or not they are left out."""


def select(documents: np.ndarray, validation_share: float, deduplicate: bool) -> Selection:
    """Choose what is kept and what is held out, by the hashes of the texts.

    The documents that come first by hash are held out, up to about their share of the bytes; those
    longer than all of that are passed over. Copies of a text go together. If there are two texts,
    at least one is held out (unless the share is 0) and one is not.
    """
    num_documents = len(documents)
    # Stable: of equal texts the first of the input comes first.
    by_hash = np.lexsort((documents["hash_low"], documents["hash_high"]))
    is_new = np.ones(num_documents, dtype=bool)
    for half in ("hash_high", "hash_low"):
        values = documents[half][by_hash]
        is_new[1:] &= values[1:] == values[:-1]
    is_new[1:] = ~is_new[1:]
    text, is_first = np.empty(num_documents, dtype=np.int64), np.empty(num_documents, dtype=bool)
    text[by_hash], is_first[by_hash] = np.cumsum(is_new) - 1, is_new
    is_kept = is_first if deduplicate else np.ones(num_documents, dtype=bool)

    sizes = np.bincount(text[is_kept], weights=documents["num_bytes"][is_kept])
    is_text_held_out = np.zeros(len(sizes), dtype=bool)
    if len(sizes) > 1 and validation_share > 0:
        wanted = validation_share * sizes.sum()
        candidates = np.flatnonzero(sizes <= max(wanted, sizes.min()))
        nearest = np.abs(np.cumsum(sizes[candidates]) - wanted).argmin()
        is_text_held_out[candidates[: nearest + 1]] = True
    return Selection(is_kept, is_text_held_out[text] & is_kept, int((~is_first).sum()))


def assemble(
    work: Path,
    results: Sequence[UnitResult],
    folder: Path,
    dtype: np.dtype,
    validation_share: float,
    seed: int,
    deduplicate: bool,
) -> dict[str, Any]:
    """Write both splits into a folder and return what the manifest tells of them.

    The order of a split is one permutation of its documents, drawn from the seed.
    """
    empty = np.empty(0, dtype=DOCUMENT)
    documents = np.concatenate(
        [empty, *(np.load(one.path(work, "npy"), allow_pickle=False) for one in results)]
    )
    selection = select(documents, validation_share, deduplicate)
    goes_to = np.full(len(documents), _NOWHERE, dtype=np.int64)
    outputs, splits = [], {}
    for name, is_held_out in zip(SPLITS, (False, True), strict=True):
        chosen = np.flatnonzero(selection.is_kept & (selection.is_held_out == is_held_out))
        order = np.random.default_rng(seed).permutation(chosen)
        offsets = np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(documents["num_tokens"][order], out=offsets[1:])
        goes_to[order] = offsets[:-1]
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "document_offsets.npy", offsets)
        tokens_file, num_tokens = folder / name / "tokens.npy", int(offsets[-1])
        outputs.append(np.lib.format.open_memmap(tokens_file, "w+", dtype, (num_tokens,)))
        splits[name] = {
            "documents": len(order),
            "tokens": num_tokens,
            "bytes": int(documents["num_bytes"][order].sum()),
        }
    total = sum(split["tokens"] for split in splits.values()) * dtype.itemsize
    licences: Counter[str | None] = Counter()
    begin = 0
    with byte_progress("shuffling", total) as advance:
        for one in results:
            rows = slice(begin, begin + one.num_documents)
            begin = rows.stop
            lengths, places = documents["num_tokens"][rows], goes_to[rows]
            _copy(one.path(work, "tokens"), lengths, places, selection.is_held_out[rows], outputs)
            kept = selection.is_kept[rows]
            counts = np.bincount(documents["licence"][rows][kept], minlength=len(one.licences))
            licences.update(dict(zip(one.licences, counts.tolist(), strict=True)))
            advance(int(lengths[kept].sum()) * dtype.itemsize)
    for output in outputs:
        output.flush()
    return {
        "splits": splits,
        "licences": {
            name or "unknown": licences[name]
            for name in sorted(licences, key=lambda name: name or "")
            if licences[name]
        },
        "duplicates": selection.num_duplicates,
    }


def _copy(
    path: Path,
    lengths: np.ndarray,  # (documents of the unit,)
    places: np.ndarray,  # (documents of the unit,) where each goes in its split
    is_held_out: np.ndarray,  # (documents of the unit,)
    outputs: Sequence[np.memmap],
) -> None:
    """Copy the documents of a unit to their places."""
    if not len(lengths):
        return
    tokens = np.memmap(path, dtype=outputs[0].dtype, mode="r")
    begin = 0
    rows = zip(lengths.tolist(), places.tolist(), is_held_out.tolist(), strict=True)
    for length, place, output in rows:
        if place != _NOWHERE:
            outputs[output][place : place + length] = tokens[begin : begin + length]
        begin += length
