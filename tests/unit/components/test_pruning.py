"""The rules of pruning, each by its values: what it drops, what it lets pass."""

import random
import re
import time
from pathlib import Path

import pytest

from titan_motif.components.sft.arithmetic import wrong_sums
from titan_motif.components.sft.conversations import Conversation, read_conversation
from titan_motif.components.sft.expected_answer import check_answer
from titan_motif.components.sft.pruning import (
    RULES,
    PruneRules,
    compared_words,
    conversation_key,
    examine,
    question_key,
)
from titan_motif.components.sft.repetition import (
    longest_character_run,
    repeated_lines,
    repeated_runs,
)
from titan_motif.components.sft.selection import Selection
from titan_motif.components.sft.words import words_and_signs_of, words_of

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "lo", "mi")]


def ask(question: str, said: str, **more) -> dict:
    answer = {"role": "assistant", "content": said}
    return {"messages": [{"role": "user", "content": question}, answer], **more}


def conversation(row: dict) -> Conversation:
    found = read_conversation(row)
    assert isinstance(found, Conversation), found
    return found


def finding(row: dict, **rules):
    return examine(conversation(row), row, PruneRules(**rules)).finding


# ---- sums


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


# ---- expected results


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


# ---- repetition


def test_shares_of_what_came_before():
    unlike = [f"w{number}" for number in range(60)]
    assert repeated_runs(unlike) == 0
    assert repeated_runs(unlike + unlike) == pytest.approx(58 / 118)
    assert repeated_runs(["a", "b", "c"] * 9) == 0  # 27 words are too few
    assert repeated_runs(["a", "b", "c"] * 20) == pytest.approx(55 / 58)
    lines = [f"line number {number}" for number in range(6)]
    assert repeated_lines("\n".join(lines)) == 0
    assert repeated_lines("\n".join(["}", *lines, "}", *lines[:3], "}", "}"])) == pytest.approx(
        3 / 9
    )
    assert repeated_lines("\n".join(lines[:1] * 5)) == 0  # five lines are too few
    assert longest_character_run("a" * 12 + " " * 50 + "b" * 30 + "c" * 11) == ("b", 30)
    assert longest_character_run("ab" * 50) == ("", 0)


# ---- the rules of one conversation


def test_answers_without_text_are_empty_and_calls_of_tools_are_not():
    assert finding(ask("a", " \n")) == ("empty", "message 2 has no text")
    assert finding(ask("a", " \n"), empty_answers=False) is None
    called = ask("a", "4")
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    result = {"role": "tool", "content": ""}
    called["messages"][1:1] = [call, result]
    assert finding(called, min_words=1) is None


@pytest.mark.parametrize(
    ("answer", "rules", "detail"),
    [
        ("one, two", {"min_words": 3}, "2 words, under 3"),
        ("one two three", {"max_words": 2}, "3 words, over 2"),
        (" 字かな ", {"min_characters": 4}, "3 characters, under 4"),
        (" 字かな ", {"max_words": 2}, "3 words, over 2"),
        ("x" * 60_001, {"max_character_run": 0}, "60,001 characters, over 60,000"),
        ("a " * 10_001, {}, "10,001 words, over 10,000"),
    ],
)
def test_answers_have_bounds_of_their_length(answer: str, rules: dict, detail: str):
    assert finding(ask("q", answer), **rules) == ("length", f"message 2 has {detail}")
    off = {"max_words": 0, "max_characters": 0, "max_repeated_runs": 0, "max_character_run": 0}
    assert finding(ask("q", answer), **off) is None


def test_repetition_is_looked_for_in_reasoning_too():
    loop = "wait, let me see " * 20
    told = f"{1 - 4 / 78:.0%} of its runs of three words came before, over 60%"
    assert finding(ask("q", loop)) == ("repetition", f"message 2: {told}")
    thought = ask("q", "4")
    thought["messages"][1]["thinking"] = loop
    assert finding(thought) == ("repetition", f"the reasoning of 2: {told}")
    assert finding(ask(loop, "4")) is None  # what the user says is not judged
    assert finding(thought, max_repeated_runs=0.96) is None
    lines = "\n".join(f"a line of {number % 2}" for number in range(8))
    assert finding(ask("q", lines), max_repeated_runs=0) == (
        "repetition",
        "message 2: 75% of its lines came before, over 50%",
    )
    runs = "no" + "o" * 100
    assert finding(ask("q", runs)) == (
        "repetition",
        "message 2: 'o' 101 times in a row, over 100",
    )
    assert finding(ask("q", runs), max_character_run=101) is None


def test_the_first_rule_in_their_order_counts():
    row = ask("q", "2 + 2 = 5\n#### 5", answer=4)
    assert finding(row) == ("answer", "5, where 4 is expected")
    assert finding(row, answer_field="result") == ("arithmetic", "message 2: 2 + 2 = 5: 4 is not 5")
    assert finding(row, answer_field="", arithmetic=False) is None
    assert finding(row, min_words=9) == ("length", "message 2 has 4 words, under 9")
    assert examine(conversation(row), row, PruneRules()).is_checked
    row = ask("q", "Answer: some", answer=4)
    assert examine(conversation(row), row, PruneRules()) == (None, False)
    assert list(RULES)[1:6] == ["empty", "length", "repetition", "answer", "arithmetic"]


# ---- what is compared


def test_keys_fold_the_ends_of_lines_and_forms_of_characters_alone():
    plain = ask("What is\n  é?", "x²")
    same, other = ask("What is \r\n  e\u0301?\n", "x² \n\n"), ask("What is\n  é", "x²")
    for question, answer in (
        ("what is\n  é?", "x²"),
        ("What is\n é?", "x²"),
        ("What is\n\n  é?", "x²"),
        (" What is\n  é?", "x²"),
        ("What is\n  é?", "x2"),
    ):
        changed = conversation(ask(question, answer))
        assert conversation_key(changed) != conversation_key(conversation(plain))
        if answer == "x²":
            assert question_key(changed) != question_key(conversation(plain))
    assert conversation_key(conversation(plain)) == conversation_key(conversation(same))
    assert conversation_key(conversation(plain)) != conversation_key(conversation(other))
    said = ask("What is\n  é?", "another")
    assert question_key(conversation(plain)) == question_key(conversation(said))
    assert question_key(conversation(plain)) != question_key(conversation(other))
    tools = {**plain, "tools": [{"name": "f"}]}
    assert conversation_key(conversation(plain)) != conversation_key(conversation(tools))
    # The same words by other speakers are another conversation.
    parted = {"messages": [*plain["messages"], *plain["messages"]]}
    assert conversation_key(conversation(parted)) != conversation_key(conversation(plain))


def test_the_same_but_for_case_and_space_is_a_near_duplicate(tmp_path: Path):
    story = " ".join(random.Random(4).choices(WORDS, k=60))
    rows = [ask("q", story), ask("Q", story.upper().replace(" ", "\n"))]
    assert selected(rows, tmp_path, near_duplicates=1.0) == {1: ("near_duplicate", 0)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2 + 2", "2 * 2"),
        ("2*2", "2/2"),
        ("2*2", "2**2"),
        ("2 - 3", "2 -- 3"),
        ("x -= 1", "x = 1"),
        ("the answer is -3", "the answer is 3"),
        ("C++", "C#"),
        ("a == b", "a != b"),
        ("a <= b", "a < b"),
        ("a && b", "a || b"),
        ("x ≤ 3", "x ≥ 3"),
        ("x ∈ A", "x ∉ A"),
        ("it costs $5", "it costs €5"),
        ("20%", "20"),
    ],
)
def test_signs_of_arithmetic_and_code_make_conversations_unlike(
    one: str, other: str, tmp_path: Path
):
    rows = [ask(one, "4"), ask(other, "4")]
    assert words_and_signs_of(one) != words_and_signs_of(other)
    assert selected(rows, tmp_path) == {}


def test_punctuation_of_prose_makes_nothing_unlike():
    plain = "A title Some words, well-known ones (or not). One item Another."
    marked = '# A title\n"Some **words**"; *well-known* ones — [or not]! …\n- One item\n* Another'
    words = words_and_signs_of(plain)
    assert " ".join(words) == "a title some words well known ones or not one item another"
    assert words_and_signs_of(marked) == words
    signs = words_and_signs_of("2 * (3 − 4)**2 != a*b")  # noqa: RUF001
    assert " ".join(signs) == "2 * 3 - 4 * * 2 ! = a * b"


def test_system_messages_and_tools_make_nothing_alike():
    row = ask("one two", "three", tools=[{"name": "nine"}])
    row["messages"].insert(0, {"role": "system", "content": "four " * 50})
    row["messages"][2]["reasoning"] = "five"
    row["messages"][2:2] = [
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "six", "arguments": {"x": "seven"}}}],
        },
        {"role": "tool", "content": "eight"},
    ]
    words = compared_words(conversation(row))
    assert {"four", "nine"}.isdisjoint(words)
    assert {"one", "two", "three", "five", "six", "seven", "eight"} <= set(words)


def test_ids_of_calls_make_nothing_unlike(tmp_path: Path):
    words = " ".join(random.Random(3).choices(WORDS, k=30))

    def called(number: int) -> dict:
        row = ask("q", words)
        calls = [
            {"id": f"id{number} {n} of a call", "name": "f", "arguments": {"n": n}}
            for n in range(9)
        ]
        row["messages"][1]["tool_calls"] = calls
        return row

    assert selected([called(0), called(1)], tmp_path, near_duplicates=1.0) == {
        1: ("near_duplicate", 0)
    }


def similar(row: dict, num_changed: int) -> dict:
    """The same conversation with so many of the answer's last words replaced."""
    words = row["messages"][1]["content"].split()
    changed = [*words[: len(words) - num_changed], *(f"z{n}" for n in range(num_changed))]
    return ask(row["messages"][0]["content"], " ".join(changed))


def test_exactly_what_was_planted_goes(tmp_path: Path):
    """Of 300 unlike conversations and 150 planted ones, in an order of chance."""
    chance = random.Random(0)
    clean = [
        ask(" ".join(chance.choices(WORDS, k=20)), " ".join(chance.choices(WORDS, k=80)))
        for _ in range(300)
    ]
    planted = []
    for row in clean[:150]:
        kind = len(planted) % 5
        question, answer = row["messages"][0]["content"], row["messages"][1]["content"]
        if kind == 0:
            planted.append((ask(f"{question} \n", f"{answer}\n"), "duplicate"))
        elif kind == 1:  # (96 - 6) / (96 + 6) of the runs in common
            planted.append((similar(row, 6), "near_duplicate"))
        elif kind == 2:  # 75 / 117
            planted.append((similar(row, 21), None))
        elif kind == 3:
            planted.append((ask(answer, f"{question} 17 + 25 = 43"), "arithmetic"))
        else:
            planted.append((ask(question, "and so it is " * 20), "repetition"))
    rows = [(row, None) for row in clean] + planted
    order = sorted(range(len(rows)), key=lambda number: (number % 150, number))  # copies come later
    selection = Selection(PruneRules(), tmp_path / "spool")
    for line, number in enumerate(order, start=1):
        row = rows[number][0]
        selection.add("chat.jsonl", line, row, conversation(row))
    selection.drop_near_duplicates()
    found = {order[number]: drop for number, drop in selection.drops.items()}
    expected = {number: rule for number, (_, rule) in enumerate(rows) if rule}
    assert {number: drop.rule for number, drop in found.items()} == expected
    for number, drop in found.items():
        if drop.rule in ("duplicate", "near_duplicate"):
            assert order[drop.repeats] == number - 300
            line = order.index(number - 300) + 1
            likeness = "as" if drop.rule == "duplicate" else f"{90 / 102:.3f} like"
            assert drop.detail == f"{likeness} chat.jsonl, line {line}"
    assert selection.counts() == {
        "duplicate": 30,
        "near_duplicate": 30,
        "arithmetic": 30,
        "repetition": 30,
    }


def selected(rows: list[dict], folder: Path, **rules) -> dict[int, tuple]:
    selection = Selection(PruneRules(**rules), folder / "spool")
    for line, row in enumerate(rows, start=1):
        selection.add("chat.jsonl", line, row, conversation(row))
    selection.drop_near_duplicates()
    return {number: (drop.rule, drop.repeats) for number, drop in selection.drops.items()}


def test_duplicates_can_be_kept_and_the_longest_can_stay(tmp_path: Path):
    row = ask("what", " ".join(random.Random(1).choices(WORDS, k=60)))
    longer = ask("what", row["messages"][1]["content"] + " and more of it")
    rows = [row, longer, row, ask("What", "nothing")]
    assert selected(rows, tmp_path) == {1: ("near_duplicate", 0), 2: ("duplicate", 0)}
    assert selected(rows, tmp_path, keep="longest") == {
        0: ("near_duplicate", 1),
        2: ("duplicate", 0),
    }
    assert selected(rows, tmp_path, questions=True) == {
        1: ("question", 0),
        2: ("duplicate", 0),
    }
    assert selected(rows, tmp_path, duplicates=False, near_duplicates=0.97) == {
        2: ("near_duplicate", 0)
    }
    assert selected(rows, tmp_path, duplicates=False, near_duplicates=0) == {}


def test_what_is_left_out_itself_makes_nothing_a_duplicate(tmp_path: Path):
    story = " ".join(random.Random(2).choices(WORDS, k=60))
    rows = [ask("q", f"{story}: 2 + 2 = 5"), ask("q", f"{story}: 2 + 2 = 4")]
    assert selected(rows, tmp_path) == {0: ("arithmetic", None)}


def test_texts_without_words_are_compared_exactly_alone(tmp_path: Path):
    rows = [ask("?", "!"), ask("?", "!!"), ask("?", "!")]
    assert words_of("?!") == []
    assert selected(rows, tmp_path) == {2: ("duplicate", 0)}


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"near_duplicates": 1.5}, "--near-duplicates is 1.5; 0 (off) to 1 is needed"),
        ({"max_repeated_runs": float("nan")}, "--max-repeated-runs is nan; 0 (off) to 1"),
        ({"min_words": -1}, "--min-words is -1; 0 (off) or more is needed"),
        ({"min_words": 9, "max_words": 5}, "--min-words is 9; at most --max-words, 5, is needed"),
        ({"max_character_run": 5}, "--max-character-run is 5; 0 (off), 10 or more is needed"),
    ],
)
def test_rules_out_of_range_are_refused(rules: dict, told: str):
    with pytest.raises(ValueError, match=re.escape(told)):
        PruneRules(**rules).check()
