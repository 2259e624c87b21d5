"""`titan-motif data inspect --chat`: packed conversations, and what is learnt of them."""

from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer
from torchtitan.components.loss import IGNORE_INDEX

from titan_motif.components.curriculum.sources import TokenFile
from titan_motif.components.preparation.manifest import check_tokenizer, load_manifest
from titan_motif.components.preparation.tokenizer import load_tokenizer

LEARNT_STYLE, READ_STYLE = "bold green", "dim"


class Piece(NamedTuple):
    """A stretch of a sample that is learnt as a whole, or not at all."""

    is_learnt: bool
    tokens: list[int]


def inspect_chat(folder: Path, tokenizer: Path | None, num_samples: int) -> dict[str, Any]:
    """Print what a packed source holds, and its first samples; return that for the JSON file.

    Raises: ValueError, one line, for what is no packed source, or of another tokenizer
    """
    file = TokenFile(folder / "train")
    if not file.is_packed:
        raise ValueError(f"{folder}: holds documents, not packed conversations; leave out --chat")
    if tokenizer is None:
        raise ValueError("--chat needs --tokenizer, the folder that the source was packed with")
    manifest = load_manifest(folder)
    check_tokenizer(manifest, tokenizer)
    _print_counts(manifest)
    loaded = load_tokenizer(tokenizer).tokenizer
    samples = []
    for number, pieces in enumerate(first_samples(file, num_samples)):
        told = [{"text": _text(loaded, p.tokens), "is_learnt": p.is_learnt} for p in pieces]
        length = sum(len(piece.tokens) for piece in pieces)
        samples.append({"sample": number, "tokens": length, "pieces": told})
        _print_sample(number, length, told)
    return {"splits": manifest["splits"], "chat": manifest["chat"], "samples": samples}


def first_samples(file: TokenFile, num_samples: int) -> list[list[Piece]]:
    """Return the first samples of a packed split in pieces; filling is none."""
    assert file.offsets is not None
    assert file.labels is not None
    found: list[list[Piece]] = []
    for begin, end in zip(file.offsets, file.offsets[1:], strict=False):
        if len(found) == num_samples:
            break
        labels = file.labels[begin:end]
        if (labels == IGNORE_INDEX).all():
            continue
        # A position's label is the token after it.
        is_learnt = np.concatenate([[False], labels[:-1] != IGNORE_INDEX])
        marked = zip(is_learnt.tolist(), file.tokens[begin:end].tolist(), strict=True)
        groups = groupby(marked, key=lambda pair: pair[0])
        found.append([Piece(learnt, [token for _, token in pairs]) for learnt, pairs in groups])
    return found


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False)


def _print_counts(manifest: dict[str, Any]) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("split")
    for heading in ("samples", "sequences", "tokens", "to learn", "filling"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, split in manifest["splits"].items():
        filling = split["filling"] / max(split["tokens"], 1)
        counts = (split[key] for key in ("documents", "sequences", "tokens", "learnt"))
        table.add_row(name, *(f"{count:,}" for count in counts), f"{filling:.1%}")
    Console(width=120).print(table)
    chat = manifest["chat"]
    print(
        f"sequences of {chat['seq_len']:,}; reasoning: {chat['reasoning']}; too long: "
        f"{manifest['too_long']:,} left out, {manifest['cut']:,} cut; nothing to learn: "
        f"{manifest['unlearnt']:,}; bad: {manifest['bad_lines']:,}; template "
        f"{manifest['chat_template']['sha256'][:12]}..."
    )


def _print_sample(number: int, length: int, pieces: list[dict[str, Any]]) -> None:
    learnt = sum(piece["is_learnt"] for piece in pieces)
    told = "stretch that is" if learnt == 1 else "stretches that are"
    print(f"\n--- sample {number}, {length:,} tokens, {learnt} {told} learnt")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    text = Text()
    for piece in pieces:
        if piece["is_learnt"] and console.is_terminal:
            text.append(piece["text"], style=LEARNT_STYLE)
        elif piece["is_learnt"]:  # where there are no colours
            text.append(f"[[{piece['text']}]]")
        else:
            text.append(piece["text"], style=READ_STYLE)
    console.print(text)
