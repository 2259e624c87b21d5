"""A tokenizer's folder as somebody else made it: its files looked at before `tokenizers` has them.

A tokenizer.json is data, but describes steps that texts go through. Steps that make texts longer
and longer are refused: a few dozen would take all memory there is. So is a frame of more special
tokens than texts have; to what length texts are filled or cut is not looked at, and none are. How
long a text takes is not limited.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from titan_motif.components.foreign_files import check_file, inside, is_panic, printable, read_json

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
MAX_BYTES = 100_000_000
"""Of a tokenizer.json; that of 220,000 entries has 20 MB."""
MAX_GROWTH = 64
"""How much longer its steps may make a text; spelling spaces otherwise makes it three times so."""
MAX_ADDED_TOKENS = 1000
"""Of those that stand around each text; most tokenizers have one or two."""
_OTHERS = ("vocab.json", "vocab.txt", "merges.txt", "model.safetensors.index.json")
"""What torchtitan reads beside these."""
_PROBE = "A text, of 2 lines:\nMotif\u00e9 \u6f22\u5b57."


def read_checked(folder: str | Path) -> Tokenizer:
    """Return what a folder's tokenizer.json holds, without its limits on length and its padding.

    Raises: ValueError, one line, if it is missing, too large, damaged, a link out of the folder, or
            one whose steps make texts longer without end
    """
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a tokenizer folder holds {TOKENIZER}")
    try:
        check_file(inside(Path(folder), TOKENIZER), MAX_BYTES)
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()  # before anything is encoded: to 3,000,000,000 tokens is one number
        tokenizer.no_truncation()
        _check_steps(tokenizer)
        with contextlib.suppress(Exception):  # what has no token for these is its own affair
            tokenizer.encode(_PROBE, add_special_tokens=False)
    except BaseException as error:  # tokenizers raises nothing more special than Exception
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise ValueError(f"{path}: cannot be read as a tokenizer ({error})") from None
    return tokenizer


def tokenizer_settings(folder: str | Path) -> dict[str, Any]:
    """Return a folder's tokenizer_config.json, an empty one if there is none.

    What it names to be imported (`auto_map`, `tokenizer_class`) is not looked at.
    Raises: ValueError, one line, if it is no object of JSON, too large, or a link out of the folder
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        return {}
    try:
        settings = read_json(inside(Path(folder), SETTINGS))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: cannot be read (no object of settings)")
    return settings


def check_tokenizer_folder(folder: str | Path) -> None:
    """Raise ValueError, one line, for files that torchtitan's own tokenizer had better not open."""
    folder = Path(folder)
    if (folder / TOKENIZER).exists():
        read_checked(folder)
    tokenizer_settings(folder)
    for name in _OTHERS:
        if (folder / name).exists():
            try:
                check_file(inside(folder, name), MAX_BYTES)
            except ValueError as error:
                raise ValueError(f"{folder / name}: {error}") from None


@contextlib.contextmanager
def telling(file: str | Path) -> Iterator[None]:
    """Tell what a tokenizer fails with, of its file, as a ValueError of one line.

    It may fail on any text: one of words has perhaps no token for a word that it does not know.
    """
    try:
        yield
    except BaseException as error:  # as above
        if isinstance(error, ValueError) or not (type(error) is Exception or is_panic(error)):
            raise
        told = printable(str(error)[:300])
        raise ValueError(f"{file}: a text cannot be tokenized with it ({told})") from None


def _check_steps(tokenizer: Tokenizer) -> None:
    """Raise ValueError, a reason, if its steps make of a text what memory does not hold."""
    parts = (
        *(tokenizer.normalizer, tokenizer.pre_tokenizer),
        *(tokenizer.post_processor, tokenizer.decoder),
    )
    steps = [json.loads(part.__getstate__()) for part in parts if part is not None]
    growth = max(map(_growth, steps), default=1)
    if growth > MAX_GROWTH:
        raise ValueError(f"its steps make a text {growth:,} times as long")
    added = sum(map(_num_added, steps))
    if added > MAX_ADDED_TOKENS:
        raise ValueError(f"{added:,} tokens stand around a text; {MAX_ADDED_TOKENS:,} are allowed")


def _inner(step: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of a sequence of steps."""
    kinds = ("normalizers", "pretokenizers", "processors", "decoders")
    return [inner for kind in kinds for inner in step.get(kind, ())]


def _num_added(step: dict[str, Any]) -> int:
    """Return how many special tokens a step puts around a text."""
    if step.get("type") != "TemplateProcessing":
        return sum(map(_num_added, _inner(step)))
    tokens = [piece["SpecialToken"]["id"] for piece in step["single"] if "SpecialToken" in piece]
    return sum(len(step["special_tokens"][token]["ids"]) for token in tokens)


def _growth(step: dict[str, Any]) -> int:
    """Return how many times as long a step makes a text, at most."""
    if inner := _inner(step):
        return math.prod(map(_growth, inner))
    if step.get("type") == "Replace":
        pattern, content = step["pattern"], step["content"]
        taken = len(pattern["String"]) if "String" in pattern else 0
        return max(-(-len(content) // taken) if taken else len(content) + 1, 1)
    if step.get("type") == "Prepend":  # before each piece between special tokens
        return len(step["prepend"]) + 1
    if step.get("type") == "ByteLevel":  # each byte as a character, which two bytes spell
        return 2
    if step.get("type") == "TemplateProcessing":
        return max(sum("Sequence" in piece for piece in step["single"]), 1)
    return 1
