"""The rules of pruning, each by its values: what it drops, what it lets pass."""

import random
import re
from pathlib import Path

import pytest

from titan_motif.components.sft.conversations import Conversation, read_conversation
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
