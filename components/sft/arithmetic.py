"""Sums in a text that are stated and wrong: `2 + 3 * 4 = 20`, of numbers with +, -, x and *.

What cannot be told for certain is passed over: parts of longer terms (powers, fractions, names,
brackets), questions, other bases and moduli. A result may be rounded to the decimals it has.
"""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_OPERATOR = r"\s*(?:[-+*−–×·]|\\times|\\cdot|[xX])\s*"  # noqa: RUF001
_STATEMENT = re.compile(
    rf"(?<![\w.,\\])(?P<term>-?[$€£]?{_NUMBER}(?:{_OPERATOR}[$€£]?{_NUMBER})+)"
    rf"\s*=\s*(?P<result>[-−]?[$€£]?{_NUMBER})(?![\d.,]*\d)"  # noqa: RUF001
)
_SIGN = {"−": "-", "–": "-", "×": "*", "·": "*", "x": "*", "X": "*"}  # noqa: RUF001
_SIGN |= {r"\times": "*", r"\cdot": "*"}
_GOES_ON_BEFORE = re.compile(r"[-+*/×·÷^√%!)\]}−–][$€£]?\s*$|\b[xX]\s*$")  # noqa: RUF001
_BULLET = re.compile(r"(?:^|\n)\s*[-*]\s+$")
_GOES_ON_AFTER = re.compile(
    r"\s*(?:[-+*/×·÷−–]\s*[\w($\\]|[/^%!?÷√]|\\\w|[xX]\b|\(?\s*mod\b)"  # noqa: RUF001
    r"|[\w(\[{]"
)
_OTHER_ARITHMETIC = re.compile(r"\b(?:mod|modulo|base|binary|octal|hex\w*)\b|≡", re.IGNORECASE)


def wrong_sums(text: str) -> Iterator[str]:
    """Yield each wrong sum of a text, with what it comes to."""
    for found in _STATEMENT.finditer(text):
        before = text[max(found.start() - 8, 0) : found.start()]
        is_listed = _BULLET.search(text[max(found.start() - 40, 0) : found.start()]) is not None
        if _GOES_ON_BEFORE.search(before) and not is_listed:
            continue
        if _GOES_ON_AFTER.match(text, found.end()) or found["term"][:2] in ("0x", "0X"):
            continue
        line_end = text.find("\n", found.end())
        line_begin = text.rfind("\n", 0, found.start()) + 1
        line = text[line_begin : line_end if line_end >= 0 else len(text)]
        if _OTHER_ARITHMETIC.search(line):
            continue
        numbers, signs = _parts(found["term"])
        stated = found["result"]
        readings = [_value(numbers, signs)]
        if is_listed:  # the mark of a list, or a minus
            readings.append(_value([-numbers[0], *numbers[1:]], signs))
        if not any(_agrees(value, stated) for value in readings):
            shown = " ".join(found.group().split())
            yield f"{shown} is {_shown(readings[0])}"


def _parts(term: str) -> tuple[list[Fraction], list[str]]:
    is_negative = term.startswith("-")
    term = term.removeprefix("-")
    numbers = [Fraction(x.replace(",", "")) for x in re.findall(_NUMBER, term)]
    signs = [x.strip() for x in re.findall(rf"(?<=\d){_OPERATOR}(?=[$€£]?\d)", term)]
    if is_negative:
        numbers[0] = -numbers[0]
    return numbers, [_SIGN.get(sign, sign) for sign in signs]


def _value(numbers: Sequence[Fraction], signs: Sequence[str]) -> Fraction:
    """Return what a term comes to, products first."""
    summands = [numbers[0]]
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            summands[-1] *= number
        else:
            summands.append(number if sign == "+" else -number)
    return sum(summands, Fraction(0))


def _agrees(value: Fraction, stated: str) -> bool:
    """Return whether a stated result is a value, or the value rounded to its decimals."""
    digits = re.sub(r"[$€£,]", "", stated).replace("−", "-")  # noqa: RUF001
    decimals = len(digits.partition(".")[2])
    unit = Fraction(1, 10**decimals)
    is_whole = value.denominator == 1
    return abs(value - Fraction(digits)) <= (0 if is_whole else unit / 2)


def _shown(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"
