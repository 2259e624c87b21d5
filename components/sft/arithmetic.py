"""Sums in a text that are stated and wrong: `2 + 3 * 4 = 20`, of numbers with +, -, x and *.

A statement has two sides or more, as in `6 x 91 = 6 x 90 + 6 = 546`, on one line. What cannot be
told for certain is passed over: parts of longer terms (powers, fractions, names, brackets),
questions, other bases and moduli. A result may be rounded to the decimals it has, and a step may go
on from the last one (`3 * 5 = 15 + 2 = 17`).
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SPACE = r"[^\S\n]*"
_OPERATOR = rf"{_SPACE}(?:[-+*−–×·]|\\times|\\cdot|[xX]){_SPACE}"  # noqa: RUF001
_SIDE = rf"[-−]?[$€£]?{_NUMBER}(?:{_OPERATOR}[$€£]?{_NUMBER})*"  # noqa: RUF001
_STATEMENT = re.compile(rf"(?<![\w.,\\]){_SIDE}(?:{_SPACE}=(?!=){_SPACE}{_SIDE}(?![\d.,]*\d))*")
"""Single sides too, so that a long one is read once, not from each of its numbers."""
_MAX_CHARACTERS = 300
"""Of a statement that is computed."""
_SIGN = {"−": "-", "–": "-", "×": "*", "·": "*", "x": "*", "X": "*"}  # noqa: RUF001
_SIGN |= {r"\times": "*", r"\cdot": "*"}
_GOES_ON_BEFORE = re.compile(rf"(?:[-+*/×·÷^√%!)\]}}−–][$€£]?|\b[xX]){_SPACE}\Z")  # noqa: RUF001
_BULLET = re.compile(r"(?:^|\n)\s*[-*]\s+$")
_GOES_ON_AFTER = re.compile(
    rf"{_SPACE}(?:[-+*/×·÷−–]{_SPACE}[\w($\\]|[/^%!?÷√]|\\\w|[xX]\b|\(?mod\b)"  # noqa: RUF001
    r"|[\w(\[{]"
)
_OTHER_ARITHMETIC = re.compile(r"\b(?:mod|modulo|base|binary|octal|hex\w*)\b|≡", re.IGNORECASE)


class _Side(NamedTuple):
    text: str
    numbers: list[Fraction]
    signs: list[str]
    decimals: int
    """Of the last number."""

    def value(self) -> Fraction:
        """Return what it comes to, products first."""
        summands = [self.numbers[0]]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            if sign == "*":
                summands[-1] *= number
            else:
                summands.append(number if sign == "+" else -number)
        return sum(summands, Fraction(0))


def wrong_sums(text: str) -> Iterator[str]:
    """Yield each two sides of a statement that are not equal, with what they come to."""
    for found in _STATEMENT.finditer(text):
        statement = found.group()
        if "=" not in statement or len(statement) > _MAX_CHARACTERS:
            continue
        before = text[max(found.start() - 40, 0) : found.start()]
        is_listed = _BULLET.search(before) is not None
        if _GOES_ON_BEFORE.search(before) and not is_listed:
            continue
        if _GOES_ON_AFTER.match(text, found.end()) or statement[:2] in ("0x", "0X"):
            continue
        line_end = text.find("\n", found.end())
        line_begin = text.rfind("\n", 0, found.start()) + 1
        line = text[line_begin : line_end if line_end >= 0 else len(text)]
        if not _OTHER_ARITHMETIC.search(line):
            yield from _differing([_side(part) for part in statement.split("=")], is_listed)


def _differing(sides: list[_Side], is_listed: bool) -> Iterator[str]:
    for number, (left, right) in enumerate(pairwise(sides)):
        if not left.signs and not right.signs:
            continue
        readings = [left]
        if is_listed and number == 0:  # the mark of a list, or a minus
            readings.append(left._replace(numbers=[-left.numbers[0], *left.numbers[1:]]))
        if not any(_agree(reading, right) for reading in readings):
            shown = f"{left.text} = {right.text}"
            yield f"{shown}: {_shown(left.value())} is not {_shown(right.value())}"


def _side(text: str) -> _Side:
    text = " ".join(text.split())
    digits = [number.replace(",", "") for number in re.findall(_NUMBER, text)]
    numbers = [Fraction(number) for number in digits]
    if text[0] in "-−":  # noqa: RUF001
        numbers[0] = -numbers[0]
    signs = [sign.strip() for sign in re.findall(rf"(?<=\d){_OPERATOR}(?=[$€£]?\d)", text)]
    decimals = len(digits[-1].partition(".")[2])
    return _Side(text, numbers, [_SIGN.get(sign, sign) for sign in signs], decimals)


def _agree(left: _Side, right: _Side) -> bool:
    """Return whether two sides are equal, or a single number the other, rounded."""
    a, b = left.value(), right.value()
    if a == b or a == right.numbers[0]:
        return True
    for single, value in ((left, b), (right, a)):
        if not single.signs and value.denominator != 1:
            return abs(a - b) <= Fraction(1, 2 * 10**single.decimals)
    return False


def _shown(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"
