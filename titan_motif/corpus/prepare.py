"""From documents to a folder that a run reads: tokenizer, two splits of each group, manifest."""

import hashlib
import json
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from titan_motif.components.preparation.manifest import describe_files
from titan_motif.components.preparation.tokenizer import (
    END_OF_TEXT,
    save_tokenizer,
    train_tokenizer,
)
from titan_motif.corpus import code, english, mathematics
from titan_motif.corpus.manifest import (
    FORMAT,
    MANIFEST,
    has_manifest,
    load_manifest,
)

GROUPS = ("english", "code", "mathematics")
SHARES = (0.35, 0.40, 0.25)
"""Shares of the groups in the text, in bytes."""
VALIDATION_SHARE = 0.02

Document = tuple[int, str]
"""Index of the group, and the text."""


def prepare(
    output: str | Path, vocab_size: int = 1024, megabytes: float = 9.0, seed: int = 0
) -> bool:
    """Write the corpus into a folder, unless it is there already; return whether it was written.

    Everything is written beside the folder and moved into place at the end; of several processes
    that prepare one folder at once, the first to end serves all.
    Raises: ValueError if the corpus is too small for the vocabulary, or if the folder holds what
            this function did not write
    """
    output = Path(output)
    settings = {
        "vocab_size": vocab_size,
        "megabytes": megabytes,
        "seed": seed,
    }
    if _is_ready(output, settings):
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{output.name}.building-", dir=output.parent))
    try:
        # A folder in it: the temporary one itself can be read by its owner alone.
        _write(work / "new", settings)
        return _move_into_place(work, output, settings)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_ready(output: Path, settings: dict[str, Any]) -> bool:
    """Return whether the corpus is there; ValueError where something else is."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not has_manifest(output):
        raise ValueError(
            f"{output}: holds something other than a built-in corpus, which is not replaced; "
            'set training.dataset = "prepared" to train on it, or choose another folder'
        )
    try:
        return load_manifest(output)["settings"] == settings
    except ValueError as error:
        print(f"corpus: prepared anew: {error}", flush=True)
        return False


def _write(folder: Path, settings: dict[str, Any]) -> None:
    """Write tokenizer, splits, and at the end the manifest."""
    begin = time.perf_counter()
    vocab_size, seed = settings["vocab_size"], settings["seed"]
    splits = split_documents(_gather(settings["megabytes"], seed), seed)
    texts = [text for _, text in splits["train"]]
    _say(begin, f"gathered {len(texts)} documents, {sum(map(len, texts)) / 1e6:.1f} MB of text")
    tokenizer = train_tokenizer(texts, vocab_size)
    save_tokenizer(tokenizer, folder / "tokenizer")
    _say(begin, f"trained a tokenizer of {vocab_size} entries")
    counts = {
        name: {
            group: write_split(
                [text for number, text in documents if number == index],
                tokenizer,
                folder / group / name,
            )
            for index, group in enumerate(GROUPS)
        }
        for name, documents in splits.items()
    }
    for name, groups in counts.items():
        tokens = ", ".join(f"{group} {count['tokens']:,}" for group, count in groups.items())
        _say(begin, f"{name}: tokens of {tokens}")
    manifest = {
        "format": FORMAT,
        "settings": settings,
        "python": platform.python_version(),
        "groups": GROUPS,
        "splits": counts,
        "files": describe_files(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _move_into_place(work: Path, output: Path, settings: dict[str, Any]) -> bool:
    """Put work/new where the output belongs; return False if another process was faster."""
    is_there = output.exists()
    if _is_ready(output, settings):
        return False
    try:
        if is_there:  # one of other settings, or damaged
            output.rename(work / "old")
        (work / "new").rename(output)
    except OSError:  # theirs came between the look and the move
        if not _is_ready(output, settings):
            raise
        return False
    return True


def _gather(megabytes: float, seed: int) -> Iterator[Document]:
    """Yield each group's documents, in a fixed order, up to its share of the text."""
    sources = (english.documents(), code.documents(), mathematics.documents(seed))
    for group, (source, share) in enumerate(zip(sources, SHARES, strict=True)):
        left = share * megabytes * 1e6
        for text in _shuffled(source, seed) if group == 1 else source:
            if left <= 0:
                break
            left -= len(text.encode())
            yield group, text


def _shuffled(documents: Iterable[str], seed: int) -> list[str]:
    """Mix the library's files: the first of them by name are not like the rest."""
    mixed = list(documents)
    random.Random(seed).shuffle(mixed)
    return mixed


def split_documents(documents: Iterable[Document], seed: int) -> dict[str, list[Document]]:
    """Hold out an equal share of each group's bytes, by a hash of the text, and shuffle once.

    Both splits have the same mixture; which documents are held out does not depend on the seed.
    """
    by_group: dict[int, list[str]] = {}
    for group, text in documents:
        by_group.setdefault(group, []).append(text)
    splits: dict[str, list[Document]] = {"train": [], "validation": []}
    for group, texts in by_group.items():
        held_out_bytes = VALIDATION_SHARE * sum(len(text.encode()) for text in texts)
        for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()):
            is_held_out = held_out_bytes > 0
            splits["validation" if is_held_out else "train"].append((group, text))
            held_out_bytes -= len(text.encode())
    for split in splits.values():
        random.Random(seed).shuffle(split)
    return splits


def write_split(documents: list[str], tokenizer: Tokenizer, folder: Path) -> dict[str, int]:
    """Write a split's tokens and each document's end; return the counts."""
    folder.mkdir(parents=True)
    end = tokenizer.token_to_id(END_OF_TEXT)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    encodings = tokenizer.encode_batch_fast(documents)
    pieces = [np.array([*encoding.ids, end], dtype=dtype) for encoding in encodings]
    np.save(folder / "tokens.npy", np.concatenate(pieces))
    np.save(folder / "document_offsets.npy", np.cumsum([0, *map(len, pieces)], dtype=np.int64))
    return {
        "documents": len(documents),
        "tokens": sum(map(len, pieces)),
        "bytes": sum(len(text.encode()) for text in documents),
    }


def _say(begin: float, text: str) -> None:
    print(f"corpus: {text} ({time.perf_counter() - begin:.1f} s)", flush=True)
