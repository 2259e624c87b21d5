"""From files of conversations to a source of packed sequences that a run reads.

SOURCE/manifest.json                how it was made, what it holds, a hash of every file
SOURCE/train/tokens.npy             sequences of `seq_len` tokens, one after the other
SOURCE/train/labels.npy             what each position is to predict; -100 where nothing
SOURCE/train/document_offsets.npy   where each sample begins; filling is a document of its own
SOURCE/validation/                  the same for the samples held out
SOURCE/bad_lines.jsonl              samples that were left out, each with the reason
"""

import json
import os
import platform
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from titan_motif.components.foreign_files import printable
from titan_motif.components.preparation.assemble import SPLITS
from titan_motif.components.preparation.inputs import Input, find_inputs
from titan_motif.components.preparation.manifest import tokenizer_sha256, write_manifest
from titan_motif.components.preparation.prepare import (
    BAD_LINES,
    MAX_VALIDATION_SHARE,
    NUM_TOLD,
    hash_inputs,
    ready_manifest,
)
from titan_motif.components.preparation.readers import read_rows
from titan_motif.components.preparation.tokenizer import DocumentTokenizer, load_tokenizer
from titan_motif.components.preparation.units import BadLine
from titan_motif.components.preparation.work_folder import locked
from titan_motif.components.progress import byte_progress
from titan_motif.components.sft.conversations import (
    Conversation,
    read_conversation,
    special_token_in,
)
from titan_motif.components.sft.packing import LEARNT, hold_out, pack, spool_sample, write_split
from titan_motif.components.sft.template import ChatTemplate, Sample, TemplateProblem, load_template

_LOUD_SHARE = 0.1
"""Share of the samples, left out for their length, above which that is told loudly."""


@dataclass(frozen=True)
class ChatOptions:
    """How conversations become sequences."""

    seq_len: int
    """Tokens of a sequence."""
    reasoning: Literal["keep", "drop"] = "keep"
    """What becomes of the assistant's reasoning."""
    too_long: Literal["drop", "cut"] = "drop"
    """What becomes of a sample that is longer than a sequence."""
    bad_samples: Literal["refuse", "drop"] = "refuse"
    """What becomes of a row that holds no conversation: nothing is made, or it is left out."""
    special_tokens: Literal["refuse", "allow"] = "refuse"
    """Whether a text that holds a special token makes a sample a bad one."""
    validation_share: float = 0.02
    """Share of the samples that is held out, by a hash of each; up to 0.5."""
    field: str = "messages"
    """Of a row, with the messages."""


def prepare_chat(
    inputs: Sequence[str],
    tokenizer_folder: str | Path,
    output: str | Path,
    options: ChatOptions,
    template_file: str | Path = "",
) -> dict[str, Any]:
    """Write a source of packed samples and return its manifest.

    If the output is there already, of the same inputs and options, nothing is done.
    Raises: ValueError, one line, for what is wrong with options, inputs, tokenizer or output, and
            for bad samples where they are refused
    """
    _check(options)
    begin, output = time.perf_counter(), Path(output).absolute()
    template = load_template(tokenizer_folder, template_file)
    tokenizer = load_tokenizer(tokenizer_folder)
    files = find_inputs(inputs)
    description = {
        "tokenizer": {
            "sha256": tokenizer_sha256(tokenizer_folder),
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "end_id": tokenizer.end_id,
        },
        "chat_template": {"sha256": template.sha256, "text": template.text},
        "chat": asdict(options),
    }
    if (ready := ready_manifest(output, description, files)) is not None:
        return ready
    work = output.with_name(f"{output.name}.preparing")
    with locked(work):
        if (ready := ready_manifest(output, description, files)) is not None:
            shutil.rmtree(work)
            return ready
        shutil.rmtree(work / "new", ignore_errors=True)
        (work / "new").mkdir()
        hashed = hash_inputs(files)
        content = _write(work / "new", files, template, tokenizer, options)
        manifest = write_manifest(work / "new", {**description, "inputs": hashed, **content})
        if output.exists():  # and empty
            output.rmdir()
        os.rename(work / "new", output)
        shutil.rmtree(work)
    _tell(manifest, output, time.perf_counter() - begin)
    return manifest


def _check(options: ChatOptions) -> None:
    if options.seq_len < 2:
        raise ValueError(f"the sequence length is {options.seq_len}; at least 2 is needed")
    if not 0 <= options.validation_share <= MAX_VALIDATION_SHARE:
        raise ValueError(
            f"the validation share is {options.validation_share}; 0 to {MAX_VALIDATION_SHARE} is "
            "allowed"
        )


def _write(
    folder: Path,
    files: Sequence[Input],
    template: ChatTemplate,
    tokenizer: DocumentTokenizer,
    options: ChatOptions,
) -> dict[str, Any]:
    """Write both splits, and return what the manifest tells of them."""
    spool, bad, counts = folder / "spool", [], Counter()
    lengths, hashes = [], []
    total = sum(one.num_bytes for one in files)
    with byte_progress("rendering", total) as advance, spool.open("wb") as out:
        for one in files:
            for sample in samples_of(one, template, options):
                if isinstance(sample, BadLine):
                    bad.append(sample)
                    continue
                kept = _fitted(sample, options, counts)
                if kept is not None:
                    lengths.append(len(kept.tokens))
                    hashes.append(spool_sample(kept, out))
            advance(one.num_bytes)
    bad_lines = _put_aside(folder, bad, options)
    if not lengths:
        raise ValueError(
            f"the inputs have no samples ({bad_lines} bad, {counts['too_long']} longer than "
            f"{options.seq_len} tokens, {counts['unlearnt']} with nothing to learn)"
        )
    is_held_out = hold_out(np.array(hashes), options.validation_share)
    spooled = np.memmap(spool, dtype=np.uint32, mode="r")
    filling = tokenizer.tokenizer.token_to_id("<|pad|>")
    filling = tokenizer.end_id if filling is None else filling
    splits = {}
    for name, chosen in zip(SPLITS, (~is_held_out, is_held_out), strict=True):
        if chosen.any():
            packed = pack(spooled, np.array(lengths), np.flatnonzero(chosen), options.seq_len)
            splits[name] = write_split(folder / name, packed, filling, tokenizer.dtype)
        else:
            splits[name] = {"documents": 0, "tokens": 0, "sequences": 0, "learnt": 0, "filling": 0}
    largest = int((spooled & ~LEARNT).max())
    del spooled
    spool.unlink()
    return {
        "splits": splits,
        "bad_lines": bad_lines,
        "too_long": counts["too_long"],
        "cut": counts["cut"],
        "unlearnt": counts["unlearnt"],
        "dtype": tokenizer.dtype.name,
        "largest_id": max(largest, filling),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "numpy": np.__version__,
        },
    }


def samples_of(
    one: Input, template: ChatTemplate, options: ChatOptions
) -> Iterator[Sample | BadLine]:
    """Yield the samples of a file as tokens, and what is wrong with the other rows."""
    refused = template.special_tokens if options.special_tokens == "refuse" else frozenset()
    waiting: deque[int | BadLine] = deque()  # rows that were taken ahead, in their order

    def conversations() -> Iterator[Conversation]:
        for row in read_rows(one):
            found = _read(one, row, refused, options)
            if isinstance(found, BadLine):
                waiting.append(found)
            else:
                waiting.append(found[0])
                yield found[1]

    for sample in template.encode_all(conversations()):
        while isinstance(number := waiting.popleft(), BadLine):
            yield number
        is_bad = isinstance(sample, TemplateProblem)
        yield BadLine(one.path, number, str(sample), "") if is_bad else sample
    yield from (left for left in waiting if isinstance(left, BadLine))


def _read(
    one: Input,
    row: tuple[int, dict[str, Any]] | BadLine,
    refused: frozenset[str],
    options: ChatOptions,
) -> tuple[int, Conversation] | BadLine:
    if isinstance(row, BadLine):
        return row
    number, fields = row
    found = read_conversation(fields, options.reasoning, options.field)
    if isinstance(found, str):
        return BadLine(one.path, number, found, "")
    token = special_token_in(found, refused)
    if token is not None:
        told = f"a text holds the special token {token!r}, which would end or begin a turn"
        return BadLine(one.path, number, told, "")
    return number, found


def _fitted(sample: Sample, options: ChatOptions, counts: Counter[str]) -> Sample | None:
    """Return a sample that fits into a sequence, None if it is left out; count which."""
    if len(sample.tokens) > options.seq_len:
        if options.too_long == "drop":
            counts["too_long"] += 1
            return None
        counts["cut"] += 1
        sample = Sample(sample.tokens[: options.seq_len], sample.is_learnt[: options.seq_len])
    if not sample.is_learnt[1:].any():  # nothing predicts the first token
        counts["unlearnt"] += 1
        return None
    return sample


def _put_aside(folder: Path, bad: Sequence[BadLine], options: ChatOptions) -> int:
    """Write the bad samples, and return how many there are; ValueError where they are refused."""
    for line in bad[:NUM_TOLD]:
        _say(f"bad sample: {line}")
    if len(bad) > NUM_TOLD:
        _say(f"bad samples: {len(bad)} in all")
    if bad and options.bad_samples == "refuse":
        raise ValueError(
            f"{bad[0]}; of bad samples there {'is 1' if len(bad) == 1 else f'are {len(bad)}'}: "
            "mend them, or leave them out (bad_samples = 'drop')"
        )
    if bad:
        (folder / BAD_LINES).write_text("".join(json.dumps(x._asdict()) + "\n" for x in bad))
    return len(bad)


def _tell(manifest: dict[str, Any], output: Path, seconds: float) -> None:
    for name, split in manifest["splits"].items():
        if split["tokens"]:
            _say(
                f"{name}: {split['documents']:,} samples in {split['sequences']:,} sequences, "
                f"{split['learnt']:,} tokens to learn of {split['tokens']:,}, "
                f"{split['filling'] / split['tokens']:.1%} filling"
            )
    chat = manifest["chat"]
    _warn(manifest)
    if chat["too_long"] == "cut":
        fate = f"{manifest['cut']:,} samples cut to {chat['seq_len']:,} tokens"
    else:
        fate = f"{manifest['too_long']:,} samples left out, over {chat['seq_len']:,}"
    _say(
        f"{fate}; {manifest['unlearnt']:,} without a token to learn and "
        f"{manifest['bad_lines']:,} bad ones left out"
    )
    _say(f"{output} written in {seconds:.1f} s")


def _warn(manifest: dict[str, Any]) -> None:
    """Tell what a run of these samples would be surprised by."""
    chat, splits = manifest["chat"], manifest["splits"]
    if chat["validation_share"] and not splits["validation"]["tokens"]:
        _say(
            "warning: nothing is held out, since all samples are equal: a run that validates "
            "(validation.enable) will find no validation samples; add others, or turn that off"
        )
    read = sum(split["documents"] for split in splits.values())
    read += manifest["too_long"] + manifest["unlearnt"]
    if manifest["too_long"] > _LOUD_SHARE * read:
        _say(
            f"warning: {manifest['too_long']:,} of {read:,} samples "
            f"({manifest['too_long'] / read:.0%}) are left out, longer than {chat['seq_len']:,} "
            "tokens: longer sequences would hold them, too_long = 'cut' their beginnings"
        )


def _say(text: str) -> None:
    print(f"chat: {printable(text)}", flush=True)
