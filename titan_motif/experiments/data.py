"""What the small models of an experiment read: text that is on the machine, and generated tasks.

FOLDER/tokenizer, FOLDER/text, FOLDER/retrieval, FOLDER/arithmetic    prepared sources
FOLDER/record.json                                                    what they were made of
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from titan_motif.components.foreign_files import MAX_RECORD_BYTES, read_json
from titan_motif.components.preparation.manifest import tokenizer_sha256
from titan_motif.components.preparation.prepare import PrepareOptions, prepare_source
from titan_motif.components.preparation.tokenizer import save_tokenizer, train_tokenizer
from titan_motif.components.whole_files import LOCK, alone_in, replace_text
from titan_motif.corpus import code, english
from titan_motif.experiments.tasks import TASKS, Task, documents, fingerprint, write_documents

RECORD = "record.json"
UNFINISHED = "unfinished"
"""An empty file, while a folder is being filled."""
VERSION = 2
"""Of how texts are chosen and prepared, to be raised when that changes; the tasks tell themselves
apart by a hash of what they generate."""
TEXT = "text"
SUFFIXES = (".py", ".pyi", ".rst", ".md", ".txt")
LICENCES = ("licen", "copying", "notice", "authors")
"""Beginnings of names of files that hold the same text in every package."""
DOCUMENTS_PER_FILE = 4000
VALIDATION_SHARES = {TEXT: 0.01, **{task.name: 0.005 for task in TASKS}}


@dataclass(frozen=True)
class DataSettings:
    """How much of everything."""

    text_megabytes: float
    """Of text at most; which texts are taken follows from their hashes."""
    has_packages: bool
    """Whether the text has the installed packages, beside the standard library."""
    task_documents: int
    """Of each task."""
    vocab_size: int
    tokenizer_megabytes: float
    """Of the text that the tokenizer is trained on; of each task a tenth of it."""


def prepare_data(folder: Path, settings: DataSettings) -> dict[str, Any]:
    """Prepare all sources, unless they are there, and return the record of them.

    The record has the settings, a hash of what the tasks generate, of all texts, of the tokenizer,
    and each source's splits and files; it follows from the settings and from what is installed.
    Raises: ValueError if the folder holds data of other settings, or anything else, or there is too
        little text
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    made_of = {**asdict(settings), "version": VERSION, "tasks_sha256": fingerprint()}
    with alone_in(folder):
        if (folder / RECORD).is_file():
            return _read_record(folder / RECORD, made_of)
        _check_free(folder)
        (folder / UNFINISHED).touch()
        record = _make(folder, settings, made_of)
        (folder / UNFINISHED).unlink()
        return record


def _check_free(folder: Path) -> None:
    """Raise ValueError unless a folder is empty, or was being filled by an earlier call."""
    if (folder / UNFINISHED).is_file():
        return
    for entry in sorted(folder.iterdir()):
        if entry.name != LOCK:
            raise ValueError(
                f"{folder}: holds {entry.name}, and no record of an experiment's data; an empty "
                "folder, or a new one, is needed (--data)"
            )


def _make(folder: Path, settings: DataSettings, made_of: dict[str, Any]) -> dict[str, Any]:
    """Prepare all sources, and return the record of them."""
    begin = time.perf_counter()
    inputs = folder / "inputs"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir()
    texts = _choose(_texts(settings.has_packages), settings.text_megabytes)
    _write_texts(inputs / TEXT, texts)
    _say(begin, f"{len(texts):,} texts, {sum(map(len, texts)) / 1e6:.1f} million characters")
    for task in TASKS:
        _generate(inputs / task.name, task, settings.task_documents)
    _say(begin, f"{settings.task_documents:,} documents of each task")
    sample = _sample(texts, settings)
    tokenizer = train_tokenizer(sample, settings.vocab_size)
    save_tokenizer(tokenizer, folder / "tokenizer")
    _say(begin, f"a tokenizer of {settings.vocab_size:,} entries")
    record = {
        "settings": made_of,
        "texts_sha256": _hash(texts),
        "num_texts": len(texts),
        "tokenizer_sha256": tokenizer_sha256(folder / "tokenizer"),
        "sources": {name: _prepare(folder, name) for name in VALIDATION_SHARES},
    }
    shutil.rmtree(inputs)
    replace_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
    _say(begin, f"data in {folder}")
    return record


def _read_record(file: Path, made_of: dict[str, Any]) -> dict[str, Any]:
    try:
        record = read_json(file, MAX_RECORD_BYTES, is_record=True)
        found = record["settings"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{file}: is no record of prepared data") from None
    for name in dict.fromkeys([*made_of, *found]):
        if made_of.get(name) != found.get(name):
            raise ValueError(
                f"{file.parent}: its data are of {name} {found.get(name)!r}, these would be of "
                f"{made_of.get(name)!r}; remove the folder, or name another one with --data"
            )
    return record


def _prepare(folder: Path, name: str) -> dict[str, Any]:
    shutil.rmtree(folder / name, ignore_errors=True)  # of a start that did not come to its end
    options = PrepareOptions(
        inputs=(str(folder / "inputs" / name),),
        output=folder / name,
        tokenizer=folder / "tokenizer",
        validation_share=VALIDATION_SHARES[name],
        workers=None if len(os.sched_getaffinity(0)) > 2 else 0,
    )
    manifest = prepare_source(options)
    files = {file: entry["sha256"] for file, entry in manifest["files"].items()}
    return {"splits": manifest["splits"], "files": files}


# ---- text


def _texts(has_packages: bool) -> Iterator[str]:
    """Yield the texts of the standard library and of the folder that torch is installed in."""
    yield from english.documents()
    yield from code.documents()
    if has_packages:
        for path, text in code.readable_texts(Path(torch.__file__).parents[1], SUFFIXES):
            if not path.name.lower().startswith(LICENCES):
                yield text.strip()


def _choose(texts: Iterable[str], megabytes: float) -> list[str]:
    """Return different texts up to a size, in the order of their hashes."""
    by_hash = {hashlib.sha256(text.encode()).digest(): text for text in texts}
    chosen, left = [], megabytes * 1e6
    for digest in sorted(by_hash):
        text = by_hash[digest]
        left -= len(text.encode())
        if left < 0:
            break
        chosen.append(text)
    return chosen


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _write_texts(folder: Path, texts: Iterable[str]) -> None:
    folder.mkdir()
    with (folder / "0.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def _sample(texts: list[str], settings: DataSettings) -> Iterator[str]:
    """Yield what the tokenizer is trained on."""
    yield from _up_to(texts, settings.tokenizer_megabytes * 1e6)
    for task in TASKS:
        made = documents(task, 0, settings.task_documents)
        yield from _up_to(made, settings.tokenizer_megabytes * 1e5)


def _up_to(texts: Iterable[str], num_bytes: float) -> Iterator[str]:
    for text in texts:
        if num_bytes <= 0:
            return
        num_bytes -= len(text.encode())
        yield text


# ---- tasks


def _generate(folder: Path, task: Task, num_documents: int) -> None:
    """Write a task's documents, on all cores."""
    folder.mkdir()
    ranges = [
        (task.name, first, min(DOCUMENTS_PER_FILE, num_documents - first), folder)
        for first in range(0, num_documents, DOCUMENTS_PER_FILE)
    ]
    if len(ranges) == 1:
        write_documents(*ranges[0])
        return
    # Spawned: tokenizers and torch have threads, which a fork would not take along.
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.starmap(write_documents, ranges)


def _say(begin: float, text: str) -> None:
    print(f"data: {text} ({time.perf_counter() - begin:.1f} s)", flush=True)
