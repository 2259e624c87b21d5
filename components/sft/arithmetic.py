"""Sums in a text that are stated and wrong: `2 + 3 * 4 = 20`, of numbers with +, -, x and *.

A statement has two sides or more, as in `6 x 91 = 6 x 90 + 6 = 546`, on one line. What cannot be
told for certain is passed over: parts of longer terms (powers, fractions, names, brackets, what a
function is taken of), times of day, ranges (`10-12 = 3 pages`), questions, other bases and moduli.
A result may be rounded to the decimals it has, or as floats are, and a step may go on from the last
one (`3 * 5 = 15 + 2 = 17`). Emphasis is no operator, and a unit that all numbers have (`2 apples +
3 apples = 5 apples`) is left out.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from math import factorial
from typing import NamedTuple

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SPACE = r"[^\S\n]*"
_OPERATOR = rf"{_SPACE}(?:[-+*−–×·]|\\times|\\cdot|[xX]){_SPACE}"  # noqa: RUF001
_SIDE = rf"[-−]?[$€£]?{_NUMBER}(?:{_OPERATOR}[$€£]?{_NUMBER})*"  # noqa: RUF001
_STATEMENT = re.compile(rf"(?<![\w.,\\]){_SIDE}(?:{_SPACE}=(?!=){_SPACE}{_SIDE}(?![\d.,]*\d))*")
"""Single sides too, so that a long one is read once, not from each of its numbers."""
_MAX_CHARACTERS = 300
"""Of a statement that is computed."""
_FLOATS_GAP = Fraction(1, 10**9)
"""Relative, of numbers with decimals: 0.1 + 0.2 = 0.30000000000000004 is what a computer says."""
_SIGN = {"−": "-", "–": "-", "×": "*", "·": "*", "x": "*", "X": "*"}  # noqa: RUF001
_SIGN |= {r"\times": "*", r"\cdot": "*"}
_GOES_ON_BEFORE = re.compile(rf"(?:[-+*/×·÷^√%!)\]}}−–][$€£]?|\b[xX]){_SPACE}\Z")  # noqa: RUF001
_BULLET = re.compile(r"(?:^|\n)\s*[-*]\s+$")
_GOES_ON_AFTER = re.compile(
    rf"{_SPACE}(?:[-+*/×·÷−–]{_SPACE}[\w($\\]|[/^%?÷√]|\\\w|[xX]\b|\(?mod\b)"  # noqa: RUF001
    rf"|[\w(\[{{]|:\d|!{_SPACE}[-+*/×·÷=^]|![\w(]"  # noqa: RUF001
)
_FUNCTION = re.compile(
    r"(?:\b(?:log|ln|lg|exp|sinh?|cosh?|tanh?|cot|sqrt|cbrt|abs|gcd|lcm)(?:_?\d+)?"
    r"|\b(?:twice|double|triple)"
    r"|(?:%|\b(?:per ?cent|root|half|thirds?|quarters?|fifths?)) of)\s*\Z",
    re.IGNORECASE,
)
"""Before the number that it is taken of."""
_RANGE = re.compile(r"\d[-–]\d")  # noqa: RUF001
_EMPHASIS = re.compile(
    r"(?<![\w)\]}*])(?<![\d)\]}][^\S\n])(\*{1,3}|_{1,3})(?=[^\s*_])"
    r"([^\n]{0,300}?[^\s*_])\1(?![\w*(])"
)
"""Of Markdown, around a part of a line: what a number stands before is an operator."""
_COUNTED = re.compile(
    rf"(?<![\w.,])({_NUMBER}) ([^\W\d_]{{3,20}}?)s?((?: [-+] {_NUMBER} \2s?){{1,8}})"
    rf" = ({_NUMBER}) \2s?\b"
)
"""Bounds keep it linear in the text."""
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
    text = _COUNTED.sub(_without_unit, _EMPHASIS.sub(r"\2", text))
    for found in _STATEMENT.finditer(text):
        statement = found.group()
        if "=" not in statement or len(statement) > _MAX_CHARACTERS:
            continue
        before = text[max(found.start() - 40, 0) : found.start()]
        is_listed = _BULLET.search(before) is not None
        if _GOES_ON_BEFORE.search(before) and not is_listed:
            continue
        if _FUNCTION.search(before) or re.search(r"\d:\Z", before):
            continue
        if _RANGE.search(statement) and " " in statement:  # 12-7=5 is none
            continue
        if _GOES_ON_AFTER.match(text, found.end()) or statement[:2] in ("0x", "0X"):
            continue
        line_end = text.find("\n", found.end())
        line_begin = text.rfind("\n", 0, found.start()) + 1
        line = text[line_begin : line_end if line_end >= 0 else len(text)]
        if not _OTHER_ARITHMETIC.search(line):
            sides = [_side(part) for part in statement.split("=")]
            if text[found.end() : found.end() + 1] == "!" and _is_factorial(*sides[-2:]):
                sides.pop()
            yield from _differing(sides, is_listed)


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


def _without_unit(found: re.Match[str]) -> str:
    first, unit, others, result = found.groups()
    return f"{first}{re.sub(rf' {unit}s?', '', others)} = {result}"


def _is_factorial(left: _Side, right: _Side) -> bool:
    """Return whether an exclamation mark behind a sum is of its arithmetic."""
    number = right.value()
    is_small = not right.signs and number.denominator == 1 and 0 <= number <= 20
    return is_small and left.value() == factorial(int(number))


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
    if a.denominator * b.denominator != 1 and abs(a - b) <= _FLOATS_GAP * abs(a):
        return True
    for single, value in ((left, b), (right, a)):
        if not single.signs and value.denominator != 1:
            return abs(a - b) <= Fraction(1, 2 * 10**single.decimals)
    return False


def _shown(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"
