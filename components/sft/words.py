"""A text as words, and runs of words as numbers: what pruning compares texts by."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_WORD_BY_WORD = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Han, which are written without spaces: a word each."""
_LETTERS = rf"[{_WORD_BY_WORD}]|[^\W{_WORD_BY_WORD}]+"
_WORD = re.compile(_LETTERS)
_SIGNS = (
    r"%&/\\@#^+=<>|~$\xa2-\xa5\xac\xb1\xb7\xd7\xf7"
    r"\u20a0-\u20cf\u2190-\u22ff\u27c0-\u27ff\u2900-\u2aff"  # money, arrows, mathematics
)
"""Of arithmetic, code and money: none of them is punctuation of prose."""
_WORD_OR_SIGN = re.compile(
    rf"{_LETTERS}|[{_SIGNS}]|!(?==)"
    r"|(?<![^\W\d_])-|-(?![^\W\d_])"  # but hyphens of words
    r"|(?<=[\w)\]}])\*(?=\*?[\w(\[{])|(?<=[\w)\]}]\*)\*(?=[\w(\[{])|(?<= )\*(?= )"  # but emphasis
)
_LIST_MARK = re.compile(r"^[^\S\n]*(?:[-+*•]|#{1,6})[^\S\n]+", re.MULTILINE)
"""Of a line: a list's, or a heading's."""


def normalized(text: str) -> str:
    """Return a text in Unicode's NFKC, case folded, with single spaces for all white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def trimmed(text: str) -> str:
    """Return a text in Unicode's NFC, without white space where lines and the text itself end.

    Case and indentation stay, which change what a program does.
    """
    lines = unicodedata.normalize("NFC", text).splitlines()
    return "\n".join(map(str.rstrip, lines)).rstrip()


def words_of(text: str) -> list[str]:
    """Return the words of a normalised text: runs of letters, digits and underscores."""
    return _WORD.findall(text)


def words_and_signs_of(text: str) -> list[str]:
    """Return the words of a text, normalised, and its signs: 2 + 2 is not 2 * 2, nor C++ C#.

    Signs are those of arithmetic, code and money, each by itself; punctuation of prose and brackets
    are none, nor are hyphens and what Markdown marks lists, headings and emphasis with.
    """
    text = _LIST_MARK.sub("", text).replace("−", "-")  # noqa: RUF001
    return _WORD_OR_SIGN.findall(normalized(text))


def run_hashes(words: Sequence[str], length: int) -> np.ndarray:  # (runs,) uint64
    """Return a number for each run of so many words, the same on every machine.

    Fewer words are one run; none are none.
    """
    if not words:
        return np.empty(0, dtype=np.uint64)
    length = min(length, len(words))
    hashes = np.fromiter(map(_hash, words), dtype=np.uint64, count=len(words))
    num_runs = len(words) - length + 1
    total = np.full(num_runs, length, dtype=np.uint64)
    for offset in range(length):  # the order of the words counts
        total = _mixed(total + hashes[offset : offset + num_runs])
    return total


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finaliser of each: every bit depends on all (arithmetic modulo 2^64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
