"""What may stand where a setting's type is declared: TOML has more kinds of values than that."""

import difflib
import types
import typing
import unicodedata
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, Literal

import tomli

from titan_motif.components.foreign_files import printable

LARGEST_NUMBER, _SMALLEST_NUMBER = 3e38, 1e-37
"""Of a setting: weights and their updates are float32, in which anything larger is infinite, and
anything smaller is 0."""
_LARGEST_INTEGER = 2**63 - 1
_LONGEST_TEXT = 4096
"""As long as a path may be."""
_NOT_IN_TEXTS = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of what would end or hide a line, or be in no file: control characters,
halves of surrogate pairs, separators of lines and paragraphs."""


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value of TOML's is one of a setting's type."""
    return any(_fits_one(value, member) for member in _members(kind))


def _fits_one(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return type(value) is str and value in typing.get_args(kind)
    if origin is list:
        (item,) = typing.get_args(kind)
        return isinstance(value, list) and all(fits(entry, item) for entry in value)
    if origin is dict:
        _, item = typing.get_args(kind)
        return isinstance(value, dict) and all(fits(entry, item) for entry in value.values())
    if kind is float:
        if type(value) not in (int, float):
            return False
        return value == 0 or _SMALLEST_NUMBER <= abs(value) <= LARGEST_NUMBER  # false of nan
    if kind is int:
        return type(value) is int and abs(value) <= _LARGEST_INTEGER
    if kind is str:
        return type(value) is str and len(value) <= _LONGEST_TEXT and _is_plain(value)
    return type(value) is kind


def _is_plain(text: str) -> bool:
    return all(unicodedata.category(char) not in _NOT_IN_TEXTS for char in text)


def describe(kind: Any, value: Any = None) -> str:
    """Return what a setting's type allows, in words; of names the one that `value` is nearest."""
    parts = []
    for member in _members(kind):
        origin, of = typing.get_origin(member), typing.get_args(member)
        if origin is Literal:
            parts.append(f"one of {', '.join(map(repr, of))}{nearest(value, of)}")
        elif origin is list:
            entries = "texts" if of == (str,) else "finite numbers"
            parts.append("a list of tables" if item_of(member) else f"a list of {entries}")
        elif origin is dict:
            parts.append("a table of finite numbers")
        elif member is not type(None):
            parts.append(_describe_plain(member, value))
    return " or ".join(parts)


def _describe_plain(kind: type, value: Any) -> str:
    if kind is str:
        if type(value) is not str:
            return "a text"
        most = f"of at most {_LONGEST_TEXT:,} characters"
        return f"a text {most}" if _is_plain(value) else "a text without control characters"
    if kind is int:
        return "an integer of 64 bits" if type(value) is int else "an integer"
    is_number = type(value) in (int, float)
    size = f"{_SMALLEST_NUMBER:g} to {LARGEST_NUMBER:g}"
    number = f"a finite number (0, or {size} in size)" if is_number else "a number"
    return {float: number, bool: "true or false"}[kind]


def nearest(value: Any, allowed: Iterable[str]) -> str:
    """Return a hint at the name that was probably meant; nothing where none is near."""
    by_lower = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


def item_of(kind: Any) -> Any:
    """Return the dataclass that a list holds, or None."""
    if typing.get_origin(kind) is list and is_dataclass(typing.get_args(kind)[0]):
        return typing.get_args(kind)[0]
    return None


def is_written_in_a_line(kind: Any) -> bool:
    """Return whether a command line can give it."""
    return item_of(kind) is None and typing.get_origin(kind) is not dict


def value_from(text: str, kind: Any) -> Any:
    """Return what a text of the command line stands for; itself, where that is nothing."""
    members = _members(kind)
    if type(None) in members and text.lower() == "none":
        return None
    if any(member is str or typing.get_origin(member) is Literal for member in members):
        return text
    if list[str] in members:
        return [part for part in text.split(",") if part]
    if bool in members and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        read = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if read.keys() == {"value"} else text


def told(value: Any) -> str:
    """Return a value as it stands in a message; of a long one its beginning and its end."""
    try:
        return _shortened(repr(value), 100)
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number of thousands of digits"


def in_a_line(text: str) -> str:
    """Return a message as one line: no control characters, and of a long one no middle."""
    return _shortened(printable(text), 800)


def _shortened(text: str, most: int) -> str:
    """What is allowed stands at a message's end."""
    if len(text) <= most:
        return text
    return f"{text[: most // 3]} … {text[-(most - most // 3) :]}"


def _members(kind: Any) -> tuple[Any, ...]:
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if is_union else (kind,)
