"""Sums that an answer states: which are told wrong, which are passed over."""

import pytest

from titan_motif.components.sft.arithmetic import wrong_sums


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("So 2 + 2 = 5.", "2 + 2 = 5: 4 is not 5"),
        ("2 + 3 * 4 = 20", "2 + 3 * 4 = 20: 14 is not 20"),
        ("3x4=13", "3x4 = 13: 12 is not 13"),
        (r"\(3 \times 4 = 14\)", r"3 \times 4 = 14: 12 is not 14"),
        ("5 − 3 = 4", "5 − 3 = 4: 2 is not 4"),  # noqa: RUF001
        ("3 - 5 = 2", "3 - 5 = 2: -2 is not 2"),
        ("-3 + 5 = 8", "-3 + 5 = 8: 2 is not 8"),
        ("1,200 + 300 = 1,600", "1,200 + 300 = 1,600: 1500 is not 1600"),
        ("$5 + $3 = $9", "$5 + $3 = $9: 8 is not 9"),
        ("2.5 * 3.33 = 8.2", "2.5 * 3.33 = 8.2: 8.325 is not 8.2"),
        ("1. 3 + 4 = 8 apples", "3 + 4 = 8: 7 is not 8"),
        ("* 3 + 4 = 8", "3 + 4 = 8: 7 is not 8"),
        ("3 + 4 = 7 and 4 + 4 = 9", "4 + 4 = 9: 8 is not 9"),
        ("3 + 4 = 8\n- 2 left", "3 + 4 = 8: 7 is not 8"),
        ("---\n3 + 4 = 8", "3 + 4 = 8: 7 is not 8"),
        ("- 3 + 4 = 7\n- 7 + 4 = 12", "7 + 4 = 12: 11 is not 12"),
        ("8 = 3 + 4", "8 = 3 + 4: 8 is not 7"),
        ("6 x 91 = 6 x 90 + 6 x 1 = 540 + 6 = 547", "540 + 6 = 547: 546 is not 547"),
        ("7 * 1.1 = 7.71", "7 * 1.1 = 7.71: 7.7 is not 7.71"),
        (
            "1000000000000 + 1 = 1000000000000",
            "1000000000000 + 1 = 1000000000000: 1000000000001 is not 1000000000000",
        ),
        # Emphasis, exclamations, units, and what only looks like a range, a time, a function.
        ("**12 + 7 = 20**", "12 + 7 = 20: 19 is not 20"),
        ("so **12** + **7** = **20**.", "12 + 7 = 20: 19 is not 20"),
        ("_12 + 7 = 20_", "12 + 7 = 20: 19 is not 20"),
        ("12+7=20!", "12+7 = 20: 19 is not 20"),
        ("5 * 23 = 5! That is it.", "5 * 23 = 5: 115 is not 5"),
        ("12 apples + 7 apples = 20 apples", "12 + 7 = 20: 19 is not 20"),
        ("1 apple + 7 apples - 2 apples = 7 apples", "1 + 7 - 2 = 7: 6 is not 7"),
        ("12-7=6", "12-7 = 6: 5 is not 6"),
        ("Total:3 + 4 = 8", "3 + 4 = 8: 7 is not 8"),
        ("The books cost 3 x 4 = 13, since 3 x 4 = 12", "3 x 4 = 13: 12 is not 13"),
        ("255 + 1 = 0", "255 + 1 = 0: 256 is not 0"),  # of eight bits it is right
        ("6 x 91 = 6 x 90 + 7 = 547", "6 x 91 = 6 x 90 + 7: 546 is not 547"),
    ],
)
def test_a_wrong_sum_is_told_with_its_value(text: str, told: str):
    assert list(wrong_sums(text)) == [told]


@pytest.mark.parametrize(
    "text",
    [
        *("2+2=4", "3 + 4 + 5 = 12.", "2 + 3 * 4 = 14", "1,200 + 300 = 1,500", "-3 + 5 = 2"),
        *("3 - 5 = −2", "2.5 * 3.33 = 8.3", "0.1 + 0.2 = 0.3", "- 3 + 4 = 1", "- 3 + 4 = 7"),  # noqa: RUF001
        # Parts of longer terms, and what is no statement.
        *("2^3 * 2 = 16", "1/2 * 4 = 2", "x - 3 + 5 = 9", "10 - 3 + 5 = 12", "2x + 3 = 9"),
        *(
            "3 + 4 = 8x",
            "3 + 4 = 10/2",
            "3 * 5 = 15 + 2 = 17",
            "6 x 91 = 6 x 90 + 6 = 546",
            "5! - 3 = 117",
            "f(3) + 4 = 9",
        ),
        *("3 + 4 == 8", "3 + 4 >= 9", "Is 3 + 4 = 8?", "7 * 3 = 1 (mod 5)", "0x10 = 16"),
        # What floats make of decimals, ranges, times, functions, factorials, powers.
        *("0.1 + 0.2 = 0.30000000000000004", "7 * 1.1 = 7.700000000000001"),
        *("pages 10-12 = 3", "2019-2020 = 1 year", "4:30 + 45 = 5:15", "30 + 45 = 5:15"),
        *("log 100 + 1 = 3", "log2 8 + 1 = 4", r"\\log_{10} 100 + 1 = 3", "20% of 50 + 5 = 15"),
        *("5 * 24 = 5!", "5 * 24 = 5! + 0", "2 **3 = 8", "5 *3 + 1 = 16 and 4 *2 = 8", "2**3 = 8"),
        *("2 hours + 30 minutes = 150 minutes", "12 apples + 7 apples = 19 apples"),
        *("1 + 1 = 10 in binary", "3 + 4 = 8%", "2 * (3 + 4) = 14", r"3 * 4 = 1\frac{1}{2}"),
    ],
)
def test_what_is_right_or_uncertain_is_no_wrong_sum(text: str):
    assert list(wrong_sums(text)) == []
