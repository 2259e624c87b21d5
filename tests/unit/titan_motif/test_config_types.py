"""What a setting's type lets through of what TOML has, and the words for the rest."""

import math
from typing import Literal

import pytest

from titan_motif.config_types import describe, fits, in_a_line, nearest, told, value_from

FITTING = [
    (3, int), (-(2**63) + 1, int), (2, float), (0.0, float), (-1e-37, float), (3e38, float),
    ("a b", str), ("", str), ("Grüße", str), (True, bool), ("a", Literal["a", "b"]),
    (["x"], list[str]), ([1, 2.5], list[float]), ({"x": 1}, dict[str, float]),
    ({}, dict[str, float]), (2, float | int), (None, int | None),
]  # fmt: skip
OTHER = [
    (True, int), (3.0, int), ("3", int), (2**63, int), (None, int), ([3], int), ({}, int),
    (True, float), ("1", float), (math.nan, float), (math.inf, float), (-math.inf, float),
    (1e39, float), (1e-300, float), (10**400, float), (10**39, float),
    (3, str), ("a\nb", str), ("a\0", str), ("\x1b[31m", str), ("a\u2028b", str), ("\udc80", str),
    ("x" * 4097, str), (1, bool), ("true", bool), ("c", Literal["a", "b"]), (1, Literal["a", "b"]),
    ("x", list[str]), ([3], list[str]), (["a\n"], list[str]), ([math.nan], list[float]),
    ([True], list[float]), ({"x": math.inf}, dict[str, float]), ([], dict[str, float]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), FITTING, ids=str)
def test_what_fits(value, kind):
    assert fits(value, kind)


@pytest.mark.parametrize(("value", "kind"), OTHER, ids=lambda value: str(value)[:20])
def test_what_does_not(value, kind):
    assert not fits(value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("3", int, "an integer"),
        (2**63, int, "an integer of 64 bits"),
        ("3", float, "a number"),
        (math.nan, float, "a finite number (0, or 1e-37 to 3e+38 in size)"),
        (3, str, "a text"),
        ("a\n", str, "a text without control characters"),
        ("x" * 5000, str, "a text of at most 4,096 characters"),
        (1, bool, "true or false"),
        ("Adan", Literal["AdamW", "Adam"], "one of 'AdamW', 'Adam' (did you mean 'Adam'?)"),
        (3, list[str], "a list of texts"),
        (3, list[float], "a list of finite numbers"),
        (3, dict[str, float], "a table of finite numbers"),
        ("x", float | int | None, "a number or an integer"),
    ],
)
def test_what_is_needed_is_told(value, kind, words: str):
    assert describe(kind, value) == words


def test_the_nearest_name_is_told_whatever_its_case():
    assert nearest("BFLOAT16", ("float32", "bfloat16")) == " (did you mean 'bfloat16'?)"
    assert nearest("llama", ("float32", "bfloat16")) == ""


def test_a_long_value_keeps_its_beginning_and_its_end():
    assert told(["x"]) == "['x']"
    text = told("a" + "x" * 5000 + "z")
    assert text.startswith("'axxx")
    assert text.endswith("xxxz'")
    assert len(text) == 103
    assert told(16**5000) == "a number of thousands of digits"


def test_a_message_is_one_line():
    assert in_a_line("a\nb\x1b[0m\u2028é") == r"a\nb\x1b[0m\u2028é"
    long = in_a_line("begin " + "x" * 5000 + "; 1 is needed")
    assert len(long) == 803
    assert long.endswith("; 1 is needed")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("5", int, 5),
        ("5\nx = 3", int, "5\nx = 3"),
        ("1" * 5000, int, "1" * 5000),
        ("[" * 5000, list[float], "[" * 5000),
        ("none", int | None, None),
        ("a,b", list[str], ["a", "b"]),
        ("True", bool, True),
    ],
)
def test_a_text_of_the_command_line_is_read_as_one_value(text: str, kind, value):
    assert value_from(text, kind) == value
