"""Units of documents as files of tokens, by several processes; what is done survives a kill.

WORK/units/000042.tokens       raw token ids, each document followed by the end token
WORK/units/000042.npy          a record for each document
WORK/units/000042.json         counts and bad lines; written last, so that it marks the unit done
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from titan_motif.components.foreign_files import MAX_RECORD_BYTES, read_json
from titan_motif.components.preparation.foreign_tokenizer import telling
from titan_motif.components.preparation.readers import read_unit
from titan_motif.components.preparation.tokenizer import DocumentTokenizer, load_tokenizer
from titan_motif.components.preparation.units import BadLine, Document, Unit

DOCUMENT = np.dtype(
    [
        ("hash_high", "<u8"),  # of the text: equal texts have equal ones
        ("hash_low", "<u8"),
        ("num_bytes", "<u8"),
        ("num_tokens", "<u4"),  # the end token counted
        ("licence", "<u4"),  # its place in the unit's list
    ]
)
BATCH_CHARACTERS = 200_000
"""Encoded at once: bounds what memory a unit needs beside its longest document."""


class Job(NamedTuple):
    """What the tokenising of all units has in common."""

    work: Path
    tokenizer: Path
    tokenizer_sha256: str
    text_field: str
    licence_field: str
    max_bad_lines: int


class UnitResult(NamedTuple):
    """What a unit was found to hold."""

    index: int
    num_documents: int
    num_tokens: int
    num_empty: int
    largest_id: int
    licences: list[str | None]
    bad_lines: list[BadLine]

    def path(self, work: Path, suffix: str) -> Path:
        """Return the unit's file of a kind."""
        return _path(work, self.index, suffix)


def finished_unit(work: Path, index: int) -> UnitResult | None:
    """Return what an earlier start found in a unit, if it came to its end."""
    try:
        content = read_json(_path(work, index, "json"), MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None
    bad_lines = [BadLine(*line) for line in content.pop("bad_lines")]
    return UnitResult(**content, bad_lines=bad_lines)


def tokenize_in_parallel(
    units: Iterable[tuple[int, Unit]], job: Job, num_workers: int
) -> Iterator[UnitResult]:
    """Tokenise units, each with its number, and yield the results as they come.

    With 0 workers in this process, otherwise in so many others. Where it is given up, units that
    were begun are brought to their end, and no others begin.
    Raises: ChildProcessError if a worker dies; what a unit's reader raises
    """
    if num_workers == 0:
        for index, unit in units:
            yield tokenize_unit(index, unit, job)
        return
    # Spawned: a fork of a process with threads may hang, and tokenizers has threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker)
    waiting = iter(units)
    try:
        running = {
            pool.submit(tokenize_unit, index, unit, job)
            for index, unit in islice(waiting, 2 * num_workers)
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            for index, unit in islice(waiting, len(done)):
                running.add(pool.submit(tokenize_unit, index, unit, job))
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process died (killed, or out of memory?); the units done are kept: start "
            "again to go on, with fewer workers if memory was short"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def tokenize_unit(index: int, unit: Unit, job: Job) -> UnitResult:
    """Write a unit's files; none that stay if its bad lines alone are over the limit.

    Raises: ValueError if a file is broken, or if the tokenizer fails on a text or gives an id that
            it does not have
    """
    tokenizer = _tokenizer(job.tokenizer, job.tokenizer_sha256)
    final = [_path(job.work, index, suffix) for suffix in ("tokens", "npy", "json")]
    # Of this process alone: a worker whose parent was killed may still be at the same unit.
    new = [path.with_name(f"{path.name}.{os.getpid()}") for path in final]
    sorted_out = _SortedOut()
    with new[0].open("wb") as file:
        writer = _UnitWriter(tokenizer, file)
        for batch in _batches(sorted_out.documents(unit, job)):
            writer.write(batch)
    if writer.largest_id >= tokenizer.vocab_size:
        raise ValueError(
            f"{job.tokenizer}: gives the id {writer.largest_id} in {unit.files[0]}, outside of its "
            f"vocabulary of {tokenizer.vocab_size} entries"
        )
    records = np.concatenate([np.empty(0, dtype=DOCUMENT), *writer.records])
    result = UnitResult(
        index,
        len(records),
        int(records["num_tokens"].sum()),
        sorted_out.num_empty,
        writer.largest_id,
        list(writer.licences),
        sorted_out.bad_lines,
    )
    if len(sorted_out.bad_lines) > job.max_bad_lines:
        new[0].unlink()
        return result
    with new[1].open("wb") as file:
        np.save(file, records)
    new[2].write_text(json.dumps(result._asdict()), encoding="utf-8")
    for source, target in zip(new, final, strict=True):
        os.replace(source, target)
    return result


class _SortedOut:
    """What a unit holds beside documents."""

    def __init__(self) -> None:
        self.bad_lines: list[BadLine] = []
        self.num_empty = 0

    def documents(self, unit: Unit, job: Job) -> Iterator[Document]:
        """Yield the documents, up to the bad line that is one too many."""
        for found in read_unit(unit, job.text_field, job.licence_field):
            if isinstance(found, BadLine):
                self.bad_lines.append(found)
                if len(self.bad_lines) > job.max_bad_lines:
                    return
            elif found.text.strip():
                yield found
            else:
                self.num_empty += 1


class _UnitWriter:
    """Appends documents to a file of tokens, and keeps what is to be told of each."""

    def __init__(self, tokenizer: DocumentTokenizer, file: BinaryIO) -> None:
        self.tokenizer, self.file = tokenizer, file
        self.records: list[np.ndarray] = []
        self.licences: dict[str | None, int] = {}
        self.largest_id = -1

    def write(self, documents: list[Document]) -> None:
        tokenizer = self.tokenizer
        with telling(tokenizer.file):
            encodings = tokenizer.tokenizer.encode_batch_fast(
                [document.text for document in documents], add_special_tokens=False
            )
        records = []
        for document, encoding in zip(documents, encodings, strict=True):
            # As 32 bits first: an id that does not fit must be told, not cut.
            ids = np.array([*encoding.ids, tokenizer.end_id], dtype=np.uint32)
            self.largest_id = max(self.largest_id, int(ids.max()))
            self.file.write(ids.astype(tokenizer.dtype).tobytes())
            content = document.text.encode()
            digest = blake2b(content, digest_size=16).digest()
            licence = self.licences.setdefault(document.licence, len(self.licences))
            high, low = (int.from_bytes(half, "big") for half in (digest[:8], digest[8:]))
            records.append((high, low, len(content), len(ids), licence))
        self.records.append(np.array(records, dtype=DOCUMENT))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _path(work: Path, index: int, suffix: str) -> Path:
    return work / "units" / f"{index:06}.{suffix}"


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, sha256: str) -> DocumentTokenizer:
    """Load a tokenizer once in each process; its hash tells it from one that lay there before."""
    return load_tokenizer(folder)


def _start_worker() -> None:
    """Prepare a worker: one thread, no traceback on Ctrl-C, and an end when its parent ends."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker calls this"

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)  # a killed parent would leave its workers waiting for ever

    threading.Thread(target=end_with_parent, daemon=True).start()
