"""An answer beside the result that is expected: equal, different, or not to be told."""

import time

import pytest

from titan_motif.components.sft.arithmetic import wrong_sums
from titan_motif.components.sft.expected_answer import check_answer


@pytest.mark.parametrize(
    ("expected", "answer", "verdict"),
    [
        ("42", "42.", "equal"),
        (42, "6 times 7 = 41", "unknown"),
        (42, "x = 41 apples", "different"),
        (42.0, r"41 or so: \boxed{42}", "equal"),
        (1000, "$1,000.00", "equal"),
        ("3 + 4 is 7.\n#### 7", "Answer: 8. Not 7", "unknown"),
        ("3 + 4 is 7.\n#### 7", "Answer: 8.\nNot 7", "different"),
        ("42", "**Answer:** 42 apples\nAll 6 of 7.", "equal"),
        ("42", "The answer is x = 42.", "equal"),
        ("42", "Answer:\n42", "equal"),
        ("1/2", r"\boxed{\frac{1}{2}}", "equal"),
        ("0.5", r"\boxed{\dfrac{1}{3}}", "different"),
        ("3.5", "Answer: 3.50 km/h", "equal"),
        (-3, "x = -3", "equal"),
        (-3, "x = 3", "different"),
        ("2500", "Answer: 2.5e3", "equal"),
        ("2.5E-3", "Answer: 0.00254", "equal"),
        ("2500", "Answer: 2.6e3", "different"),
        # Shares and percentages.
        ("50%", "Answer: 0.5", "equal"),
        ("1/2", r"\boxed{50\%}", "equal"),
        ("50", "Answer: 50 percent", "equal"),
        ("0.5", "Answer: 60%", "unknown"),
        ("50%", "Answer: 60%", "different"),
        # As far as they are written out.
        ("1/3", "Answer: 0.333", "equal"),
        ("1/3", "Answer: 0.3", "unknown"),
        ("1/3", "Answer: 0.34", "different"),
        ("33.3", "Answer: 33.33", "equal"),
        ("33.33", "Answer: 33.3", "unknown"),
        ("33.3", "Answer: 33.4", "different"),
        ("18", "Answer: 18.4", "unknown"),
        ("18", "Answer: 18.6", "different"),
        (0.1 + 0.2, "Answer: 0.3", "unknown"),
        # Words of scale, other units.
        ("18,000,000", "Answer: 18 million", "unknown"),
        ("18 thousand", "Answer: 18,000", "unknown"),
        ("5000", "Answer: 5k", "unknown"),
        ("5 km", "Answer: 5000 m", "unknown"),
        ("5 km", "Answer: 6 km", "different"),
        ("5", "Answer: 6 m", "different"),
        # The last number of a text may be any.
        ("18", "She pays $18. See problem 3.", "unknown"),
        ("18", "Answer: $18. See problem 3.", "unknown"),
        (7, "seven", "unknown"),
        ("1", "Answer: 1e9999", "unknown"),
        ("B", "Answer: (B)", "equal"),
        ("B", r"\boxed{\text{C}}", "different"),
        ("yes", "The answer is No.", "different"),
        # What cannot be compared for certain.
        ("4", r"\boxed{\sqrt{16}}", "unknown"),
        ("x + 1", r"\boxed{4}", "unknown"),
        ("8", "Answer: between 7 and 9", "unknown"),
        ("B", "It is C", "unknown"),
        ("B", "The answer is correct.", "unknown"),
        ("Paris", "The answer is Rome.", "unknown"),
        ("It is a long story of 3 men.", "Answer: 4", "unknown"),
        (True, "Answer: 0", "unknown"),
        ([4], "Answer: 3", "unknown"),
    ],
)
def test_an_answer_against_its_expected_result(expected, answer: str, verdict: str):
    assert check_answer(expected, answer)[0] == verdict


def test_hostile_texts_take_no_time_and_no_number_is_too_long():
    begin = time.perf_counter()
    for text in ("1 apples + " * 9_000, "(*a" * 20_000, " **1" * 20_000):
        assert list(wrong_sums(text)) == []
    for text in ("1+" * 20_000 + "1 = 3", "9" * 60_000 + " + 1 = 3", "1,111" + ",111" * 20_000):
        assert list(wrong_sums(text)) == []
        assert check_answer("1", text)[0] == "unknown"
        last = "unknown" if "," in text else "different"  # 3, or a number too long
        assert check_answer("1", f"Answer: {text}")[0] == last
    assert check_answer("1", "\\boxed{" * 5000 + "2")[0] == "unknown"
    assert check_answer("1", "\\boxed{" + "9" * 9000 + "}")[0] == "unknown"
    assert time.perf_counter() - begin < 3


def test_a_result_is_told_as_it_was_read():
    assert check_answer("3.5", "Answer: 4.25")[1] == "4.25, where 3.5 is expected"
    assert check_answer("1/3", "#### 2/7")[1] == "2/7, where 1/3 is expected"
    assert check_answer("B", "Answer: (c)")[1] == "c, where b is expected"
