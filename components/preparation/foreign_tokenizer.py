"""A tokenizer's folder as somebody else made it: its files looked at before `tokenizers` has them.

A tokenizer.json is data, but describes steps that texts go through. Steps that make texts longer
and longer are refused: a few dozen would take all memory there is. How long a text takes is not
limited.
"""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from titan_motif.components.foreign_files import check_file, inside, is_panic, read_json

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
MAX_BYTES = 100_000_000
"""Of a tokenizer.json; that of 220,000 entries has 20 MB."""
MAX_GROWTH = 64
"""How much longer its steps may make a text; spelling spaces otherwise makes it three times so."""
_OTHERS = ("vocab.json", "vocab.txt", "merges.txt", "model.safetensors.index.json")
"""What torchtitan reads beside these."""
_PROBE = "A text, of 2 lines:\nMotif\u00e9 \u6f22\u5b57."


def read_checked(folder: str | Path) -> Tokenizer:
    """Return what a folder's tokenizer.json holds.

    Raises: ValueError, one line, if it is missing, too large, damaged, a link out of the folder, or
            one whose steps make texts longer without end
    """
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a tokenizer folder holds {TOKENIZER}")
    try:
        check_file(inside(Path(folder), TOKENIZER), MAX_BYTES)
        tokenizer = Tokenizer.from_file(str(path))
        for part in (tokenizer.normalizer, tokenizer.post_processor, tokenizer.decoder):
            growth = 1 if part is None else _growth(json.loads(part.__getstate__()))
            if growth > MAX_GROWTH:
                raise ValueError(f"its steps make a text {growth:,} times as long")
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


def _growth(step: dict[str, Any]) -> int:
    """Return how many times as long a step makes a text, at most."""
    inner = [x for name in ("normalizers", "processors", "decoders") for x in step.get(name, ())]
    if inner:
        return math.prod(map(_growth, inner))
    if step.get("type") == "Replace":
        pattern, content = step["pattern"], step["content"]
        taken = len(pattern["String"]) if "String" in pattern else 0
        return max(-(-len(content) // taken) if taken else len(content) + 1, 1)
    if step.get("type") == "Prepend":  # before each piece between special tokens
        return len(step["prepend"]) + 1
    if step.get("type") == "TemplateProcessing":
        return max(sum("Sequence" in piece for piece in step["single"]), 1)
    return 1
