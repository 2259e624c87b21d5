"""From files of documents to a source: tokenised, split, shuffled once, with a manifest.

The work lies in OUTPUT.preparing/ (`work_folder.py`) until the whole is moved to OUTPUT.
"""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from titan_motif.components.file_hashes import file_sha256
from titan_motif.components.foreign_files import printable
from titan_motif.components.preparation.assemble import assemble
from titan_motif.components.preparation.inputs import Input, find_inputs, is_unchanged
from titan_motif.components.preparation.manifest import (
    MANIFEST,
    describe_files,
    load_manifest,
    tokenizer_sha256,
    write_manifest,
)
from titan_motif.components.preparation.readers import plan_units
from titan_motif.components.preparation.tokenize_units import (
    Job,
    UnitResult,
    finished_unit,
    tokenize_in_parallel,
)
from titan_motif.components.preparation.tokenizer import DocumentTokenizer, load_tokenizer
from titan_motif.components.preparation.units import UNIT_BYTES, BadLine, Unit
from titan_motif.components.preparation.work_folder import locked, take_up
from titan_motif.components.progress import byte_progress

BAD_LINES = "bad_lines.jsonl"
NUM_TOLD = 5
"""Bad lines that are told one by one."""
MAX_VALIDATION_SHARE = 0.5


@dataclass(frozen=True)
class PrepareOptions:
    """What a source is made of, and how."""

    inputs: tuple[str, ...]
    """Files, folders (all files of the format below them) or patterns such as 'web/*.jsonl'."""
    output: Path
    """The folder to write; nothing is ever replaced."""
    tokenizer: Path
    """Folder with tokenizer.json."""
    format: str = "auto"
    """auto (by the suffix), jsonl (gzip too), parquet, arrow, text, or huggingface (on disk)."""
    text_field: str = "text"
    """Field of a row that holds the document."""
    licence_field: str = ""
    """Field that holds its licence, for the counts of the manifest; none if empty."""
    validation_share: float = 0.005
    """Share of the text, in bytes, that is held out by a hash of each document; up to 0.5."""
    seed: int = 0
    """Of the order of the documents."""
    workers: int | None = None
    """Processes that tokenise, 0 for none but this one; as many as there are CPUs if not given."""
    deduplicate: bool = False
    """Leave out each document whose text came before."""
    max_bad_lines: int = 100
    """More of them stop the preparation; the work is kept."""


def prepare_source(options: PrepareOptions, unit_bytes: int = UNIT_BYTES) -> dict[str, Any]:
    """Write a source and return its manifest; go on where an earlier start was stopped.

    What is written depends on inputs and options alone, not on workers or restarts. If the output
    is there already, of the same inputs and options, nothing is done.
    Raises: ValueError, one line, for what is wrong with options, inputs, tokenizer or output;
            ChildProcessError if a worker dies
    """
    _check(options)
    begin = time.perf_counter()
    output = options.output.absolute()
    tokenizer = load_tokenizer(options.tokenizer)
    inputs = find_inputs(options.inputs, options.format)
    description = _describe(options, inputs, tokenizer)
    ready_manifest(output, description, inputs)
    units = plan_units(inputs, options.text_field, options.licence_field, unit_bytes)
    work = output.with_name(f"{output.name}.preparing")
    with locked(work):
        manifest = ready_manifest(output, description, inputs)
        if manifest is not None:
            _say(f"{output} is there already, of the same inputs and options")
            shutil.rmtree(work)
            return manifest
        job = Job(
            work,
            options.tokenizer,
            description["tokenizer"]["sha256"],
            options.text_field,
            options.licence_field,
            options.max_bad_lines,
        )
        if not take_up(job, inputs, len(units), unit_bytes):
            _say("the work of an earlier start is of other inputs or settings; beginning anew")
        results = _tokenize(job, units, options)
        for one in inputs:
            if not is_unchanged(one):
                raise ValueError(f"{one.path}: changed while it was read; start again")
        description["inputs"] = hash_inputs(inputs)
        manifest = _write(work, results, options, description, tokenizer)
        os.rename(work / "new", output)
        shutil.rmtree(work)
    _summarise(manifest, output, time.perf_counter() - begin)
    return manifest


def _check(options: PrepareOptions) -> None:
    if not 0 <= options.validation_share <= MAX_VALIDATION_SHARE:
        raise ValueError(
            f"the validation share is {options.validation_share}; 0 to {MAX_VALIDATION_SHARE} is "
            "allowed"
        )
    for name in ("seed", "max_bad_lines", "workers"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise ValueError(f"{name} is {value}; at least 0 is needed")
    if not options.text_field:
        raise ValueError("the text field has no name; the field with the document is needed")


def _describe(
    options: PrepareOptions, inputs: Sequence[Input], tokenizer: DocumentTokenizer
) -> dict[str, Any]:
    """Return what decides the content of a source beside the inputs, as its manifest records it."""
    return {
        "tokenizer": {
            "sha256": tokenizer_sha256(options.tokenizer),
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "end_id": tokenizer.end_id,
        },
        "input_format": ", ".join(sorted({one.format for one in inputs})),
        "text_field": options.text_field,
        "licence_field": options.licence_field,
        "seed": options.seed,
        "validation_share": options.validation_share,
        "deduplicated": options.deduplicate,
    }


def hash_inputs(inputs: Sequence[Input]) -> list[dict[str, Any]]:
    """Return path, size and SHA-256 of every input; of a folder, of its files' hashes."""
    described = []
    total = sum(one.num_bytes for one in inputs)
    with byte_progress("hashing the inputs", total) as advance:
        for one in inputs:
            path = Path(one.path)
            if path.is_dir():
                content = json.dumps(describe_files(path), sort_keys=True).encode()
                found = hashlib.sha256(content).hexdigest()
            else:
                found = file_sha256(path)
            described.append({"path": one.path, "bytes": one.num_bytes, "sha256": found})
            advance(one.num_bytes)
    return described


def ready_manifest(
    output: Path, description: dict[str, Any], inputs: Sequence[Input]
) -> dict[str, Any] | None:
    """Return the output's manifest if it is the source described, None if nothing is there yet.

    Raises: ValueError if something else is
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / MANIFEST).is_file():
        raise ValueError(f"{output}: holds something else, which is not replaced; name another")
    manifest = load_manifest(output)
    differing = [name for name, value in description.items() if manifest.get(name) != value]
    if not differing and manifest["inputs"] != hash_inputs(inputs):
        differing = ["inputs"]
    if differing:
        raise ValueError(
            f"{output}: holds a source of other settings ({', '.join(differing)}), which is not "
            "replaced; name another folder, or remove that one"
        )
    return manifest


def _tokenize(job: Job, units: Sequence[Unit], options: PrepareOptions) -> list[UnitResult]:
    """Return the results of all units in their order; ValueError if too many lines are bad."""
    found = [finished_unit(job.work, index) for index in range(len(units))]
    results = [result for result in found if result is not None]
    waiting = [(index, units[index]) for index, result in enumerate(found) if result is None]
    if results:
        _say(f"{len(results)} of {len(units)} units kept from an earlier start")
    num_bad, num_tokens = sum(len(result.bad_lines) for result in results), 0
    if num_bad > job.max_bad_lines:
        waiting = []
    num_workers = options.workers
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0))
    total = sum(unit.num_bytes for unit in units)
    new_bytes = sum(unit.num_bytes for _, unit in waiting)
    begin = time.perf_counter()
    with byte_progress("tokenising", total, total - new_bytes) as advance:
        for result in tokenize_in_parallel(waiting, job, num_workers):
            advance(units[result.index].num_bytes)
            results.append(result)
            num_tokens += result.num_tokens
            num_bad += len(result.bad_lines)
            if num_bad > job.max_bad_lines:
                break
    if num_bad > job.max_bad_lines:
        bad_lines = _put_aside(job.work, results)
        raise ValueError(
            f"{num_bad} bad lines, over the limit of {job.max_bad_lines}; the first: "
            f"{bad_lines[0]}; all in {job.work / BAD_LINES}; the work is kept"
        )
    if waiting:
        seconds = time.perf_counter() - begin
        _say(
            f"tokenised {new_bytes / 1e6:,.1f} MB in {seconds:.1f} s: {num_tokens:,} tokens, "
            f"{num_tokens / seconds / 1e6:.2f} million/s"
        )
    return sorted(results, key=lambda result: result.index)


def _write(
    work: Path,
    results: Sequence[UnitResult],
    options: PrepareOptions,
    description: dict[str, Any],
    tokenizer: DocumentTokenizer,
) -> dict[str, Any]:
    """Write the source into work/new, the manifest last, and return it."""
    new = work / "new"
    new.mkdir()
    bad_lines = _put_aside(new, results)
    num_empty = sum(result.num_empty for result in results)
    if not any(result.num_documents for result in results):
        first = f"; the first bad line: {bad_lines[0]}" if bad_lines else ""
        raise ValueError(
            f"the inputs have no documents, {num_empty} empty ones and {len(bad_lines)} bad lines"
            f"{first}"
        )
    content = assemble(
        work,
        results,
        new,
        tokenizer.dtype,
        options.validation_share,
        options.seed,
        options.deduplicate,
    )
    if not options.licence_field:  # of which nothing is known: no count of unknown ones
        content["licences"] = {}
    content = {
        **description,
        **content,
        "bad_lines": len(bad_lines),
        "empty": num_empty,
        "dtype": tokenizer.dtype.name,
        "largest_id": max(result.largest_id for result in results),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "numpy": np.__version__,
        },
    }
    return write_manifest(new, content)


def _put_aside(folder: Path, results: Sequence[UnitResult]) -> list[BadLine]:
    """Write the bad lines in the order of the inputs, if there are any, tell and return them."""
    ordered = sorted(results, key=lambda result: result.index)
    bad_lines = [bad_line for result in ordered for bad_line in result.bad_lines]
    if bad_lines:
        lines = [json.dumps(bad_line._asdict()) + "\n" for bad_line in bad_lines]
        (folder / BAD_LINES).write_text("".join(lines))
    for bad_line in bad_lines[:NUM_TOLD]:
        _say(f"put aside: {bad_line}")
    if len(bad_lines) > NUM_TOLD:
        _say(f"put aside: {len(bad_lines)} lines in all, listed in {BAD_LINES}")
    return bad_lines


def _summarise(manifest: dict[str, Any], output: Path, seconds: float) -> None:
    for name, split in manifest["splits"].items():
        _say(
            f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens, "
            f"{split['bytes'] / 1e6:,.1f} MB of text"
        )
    fate = "left out" if manifest["deduplicated"] else "kept"
    _say(
        f"{manifest['duplicates']:,} duplicates {fate}, {manifest['empty']:,} empty documents and "
        f"{manifest['bad_lines']:,} bad lines left out"
    )
    field = manifest["licence_field"]
    if field and set(manifest["licences"]) == {"unknown"}:
        _say(f"warning: no document has the licence field {field!r}; all licences are unknown")
    _say(f"{output} written in {seconds:.1f} s")


def _say(text: str) -> None:
    print(f"prepare: {printable(text)}", flush=True)
