r"""Whether an answer comes to the result that its row has for it.

A result is a number, a choice's letter, or one of yes and no, true and false. The answer's own is
what the last \boxed{...} holds, otherwise the last `Answer: ...` or `the answer is ...`, otherwise,
where a number is expected, its last number. What cannot be compared for certain (formulas,
sentences, lists) is told apart from what differs.
"""

import re
from fractions import Fraction
from typing import Any, Literal

Verdict = Literal["equal", "different", "unknown"]

_NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")  # noqa: RUF001
_MARKED = re.compile(r"\banswer\s*\**\s*:|\banswer\s+is\b|####", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}")
_MAX_DIGITS = 100
"""Of a result; longer ones are no numbers."""
_WORDS = ({"yes", "no"}, {"true", "false"})
_WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")


def check_answer(expected: Any, answer: str) -> tuple[Verdict, str]:
    """Return how an answer stands to the expected result, and in words what differs."""
    wanted = _expected(expected)
    if wanted is None:
        return "unknown", ""
    marked = _marked(answer)
    if isinstance(wanted, str):
        found = None if marked is None else _word(marked)
        if found is None or not _is_comparable(found, wanted):
            return "unknown", ""
    else:
        found = _last_number(answer) if marked is None else _number(marked)
        if found is None and marked is not None:
            return "unknown", ""
        if found is None:
            return "different", f"no number, where {_shown(wanted)} is expected"
    if found == wanted:
        return "equal", ""
    return "different", f"{_shown(found)}, where {_shown(wanted)} is expected"


def _expected(value: Any) -> Fraction | str | None:
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
    line = text[last.end() :].lstrip(" *:\t").partition("\n")[0]
    return line.strip() or None


def _number(text: str) -> Fraction | None:
    """Return the number that a result is: alone, with its unit, or after an equals sign."""
    text = _FRACTION.sub(r"\1/\2", text.rpartition("=")[2])
    text = re.sub(r"\\[$%,!;() ]|[$€£%°*]", "", _WRAPPER.sub(r" \1", text)).strip()
    if re.search(r"[\\^(){}+]", text):
        return None
    found = _NUMBER.findall(text)
    starts = _NUMBER.match(text)
    if len(found) != 1 or starts is None:
        return None
    unit = text[starts.end() :].strip()
    return _fraction(found[0]) if re.fullmatch(r"[^\W\d]*(?:[ /][^\W\d]+)*\W*", unit) else None


def _last_number(text: str) -> Fraction | None:
    found = _NUMBER.findall(_FRACTION.sub(r"\1/\2", text))
    return _fraction(found[-1]) if found else None


def _fraction(digits: str) -> Fraction | None:
    if len(digits) > _MAX_DIGITS:
        return None
    try:
        top, _, bottom = digits.replace(",", "").replace("−", "-").partition("/")  # noqa: RUF001
        return Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _word(text: str) -> str | None:
    """Return a result that is a single word, a letter in brackets too; None if it is not."""
    text = re.sub(r"[\s$*().,:!\"']+", " ", _WRAPPER.sub(r"\1", text)).strip()
    return text.casefold() if re.fullmatch(r"[^\W\d_]+", text) else None


def _is_comparable(a: str, b: str) -> bool:
    """Return whether two words are letters, or answers to the same kind of question."""
    return len(a) == len(b) == 1 or any(a in words and b in words for words in _WORDS)


def _shown(value: Fraction | str) -> str:
    if isinstance(value, str) or value.denominator == 1:
        return str(value)
    decimal = f"{float(value):g}"
    return decimal if Fraction(decimal) == value else str(value)
