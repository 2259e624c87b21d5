r"""Whether an answer comes to the result that its row has for it.

A result is a number, a choice's letter, or one of yes and no, true and false. The answer's own is
what the last \boxed{...} holds, otherwise the last `Answer: ...`, `answer is ...` or `#### ...`,
otherwise the answer itself, where it is a number and nothing else. What cannot be compared for
certain is told apart from what differs: formulas, sentences, lists, a number that stands last in a
text, words of scale (5 million), a share beside a percentage, other units, numbers that differ no
more than rounding does.
"""

import re
from fractions import Fraction
from typing import Any, Literal, NamedTuple

Verdict = Literal["equal", "different", "unknown"]

_NUMBER = re.compile(
    r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"  # noqa: RUF001
    r"(?:/\d+|[eE][-+]?\d{1,3}(?!\d))?"
)
_MARKED = re.compile(r"\banswer\s*\**\s*:|\banswer\s+is\b|####", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}")
_MAX_DIGITS = 100
"""Of a result; longer ones are no numbers."""
_WORDS = ({"yes", "no"}, {"true", "false"})
_SCALE = re.compile(
    r"(?:[kKMB]|bn|mn|(?i:dozens?|hundreds?|thousands?|lakhs?|crores?|[a-z]+illions?))\b"
)
"""Of a unit's beginning: 5 million, 5k."""
_PERCENT = re.compile(r"\\?%|\bper ?cent\b|\bpercent\b", re.IGNORECASE)
_MAX_ALONE = 80
"""Characters of an answer that may be a number and nothing else."""
_ALONE = re.compile(r"\s*(?:[^\W\d]\w*\s*=)?[^=]*")
"""With the name of what it is at most."""
_WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")


class _Amount(NamedTuple):
    value: Fraction
    decimals: int | None
    """That it is written with; None of a fraction."""
    unit: str


def check_answer(expected: Any, answer: str) -> tuple[Verdict, str]:
    """Return how an answer stands to the expected result, and in words what differs."""
    wanted = _expected(expected)
    if wanted is None:
        return "unknown", ""
    marked = _marked(answer)
    if isinstance(wanted, str):
        word = None if marked is None else _word(marked)
        if word is None or not _is_comparable(word, wanted):
            return "unknown", ""
        verdict: Verdict = "equal" if word == wanted else "different"
        return verdict, f"{word}, where {wanted} is expected" if verdict == "different" else ""
    if marked is None and len(answer) <= _MAX_ALONE and _ALONE.fullmatch(answer):
        marked = answer
    found = None if marked is None else _number(marked)
    if found is None:
        return "unknown", ""
    verdict = _compared(found, wanted)
    if verdict != "different":
        return verdict, ""
    return verdict, f"{_shown(found.value)}, where {_shown(wanted.value)} is expected"


def _compared(found: _Amount, wanted: _Amount) -> Verdict:
    """Return whether two numbers are equal, as far as they are written out."""
    if found.value == wanted.value:
        return "equal"
    if found.unit != wanted.unit and (
        "%" in (found.unit, wanted.unit) or (found.unit and wanted.unit)
    ):
        shares = [x.value / 100 if x.unit == "%" else x.value for x in (found, wanted)]
        return "equal" if shares[0] == shares[1] else "unknown"
    gap = abs(found.value - wanted.value)
    if wanted.decimals and gap <= _half_a_step(wanted.decimals):
        return "equal"
    if found.decimals and gap <= _half_a_step(found.decimals):
        is_fine = wanted.decimals is None and found.decimals > 1  # 0.333, of 1/3
        return "equal" if is_fine else "unknown"
    if wanted.decimals == 0 and found.decimals != 0 and gap <= _half_a_step(0):
        return "unknown"  # perhaps the whole number is a rounded one
    return "different"


def _half_a_step(decimals: int) -> Fraction:
    return Fraction(1, 2 * 10**decimals)


def _expected(value: Any) -> _Amount | str | None:
    """Return a row's result as a number or a word; None if it is neither."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value)
    marked = _marked(text)
    text = text if marked is None else marked
    number = _number(text)
    return _word(text) if number is None else number


def _marked(text: str) -> str | None:
    """Return what a text marks as its result, the last one; None if nothing is."""
    begin = text.rfind("\\boxed{")
    if begin >= 0:
        begin, depth = begin + len("\\boxed{"), 1
        for position in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[begin:position]
        return None
    last = None
    for mark in _MARKED.finditer(text):
        last = mark
    if last is None:
        return None
    line = text[last.end() :].lstrip(" *:\t\n").partition("\n")[0]
    return line.strip() or None


def _number(text: str) -> _Amount | None:
    """Return the number that a result is: alone, with its unit, or after an equals sign."""
    text = _FRACTION.sub(r"\1/\2", text.rpartition("=")[2])
    is_percent = _PERCENT.search(text) is not None
    text = _PERCENT.sub("", _WRAPPER.sub(r" \1", text))
    text = re.sub(r"\\[$%,!;() ]|[$€£°*]", "", text).strip()
    starts = _NUMBER.match(text)
    if starts is None or len(_NUMBER.findall(text)) != 1:
        return None
    unit = text[starts.end() :].strip()
    if re.search(r"[\\^(){}+]", unit) or _SCALE.match(unit):
        return None
    if not re.fullmatch(r"[^\W\d]*(?:[ /][^\W\d]+)*\W*", unit):
        return None
    return _amount(starts.group(), "%" if is_percent else unit.rstrip(" .,;:!?").casefold())


def _amount(digits: str, unit: str) -> _Amount | None:
    if len(digits) > _MAX_DIGITS:
        return None
    digits = digits.replace(",", "").replace("−", "-").lower()  # noqa: RUF001
    top, is_fraction, bottom = digits.partition("/")
    try:
        value = Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None
    mantissa, _, exponent = top.partition("e")
    decimals = max(len(mantissa.partition(".")[2]) - int(exponent or 0), 0)
    return _Amount(value, None if is_fraction else decimals, unit)


def _word(text: str) -> str | None:
    """Return a result that is a single word, a letter in brackets too; None if it is not."""
    text = re.sub(r"[\s$*().,:!\"']+", " ", _WRAPPER.sub(r"\1", text)).strip()
    return text.casefold() if re.fullmatch(r"[^\W\d_]+", text) else None


def _is_comparable(a: str, b: str) -> bool:
    """Return whether two words are letters, or answers to the same kind of question."""
    return len(a) == len(b) == 1 or any(a in words and b in words for words in _WORDS)


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value)
    decimal = f"{float(value):g}"
    return decimal if Fraction(decimal) == value else str(value)
