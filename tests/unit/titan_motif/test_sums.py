"""Sums to learn and to be asked, and the conversations that are made of them."""

import json
from collections import Counter
from pathlib import Path

import pytest

import titan_motif.device  # noqa: F401
from titan_motif.components.sft.conversations import Conversation, read_conversation
from titan_motif.corpus import conversations
from titan_motif.corpus.sums import answer, question, split_sums
from titan_motif.evaluation import sums
from titan_motif.evaluation.continuation import Continuation


def test_sums_are_all_there_and_what_is_asked_is_not_learnt():
    learnt, held_out = split_sums()
    assert 800 < len(held_out) < 1200
    assert sorted(learnt + held_out) == [(a, b) for a in range(100) for b in range(100)]
    assert {(b, a) for a, b in held_out} == set(held_out)
    assert sum(max(pair) < 10 for pair in held_out) > 3
    assert split_sums() == (learnt, held_out)


def test_no_conversation_has_a_sum_that_is_held_out(monkeypatch):
    monkeypatch.setattr(conversations, "NUM_TEXTS", 80)
    asked = {question(a, b) for a, b in split_sums()[1]}
    answers = {f"{a} + {b} =" for a, b in split_sums()[1]}
    kinds: Counter[str] = Counter()
    for stage in (conversations.stage_1, conversations.stage_2):
        rows = list(stage())
        assert rows == list(stage())
        for row in rows:
            kinds[row["kind"]] += 1
            assert isinstance(read_conversation(row), Conversation)
            assert row["messages"][0]["content"] not in asked
            if row["kind"] == "sum":
                assert not any(row["messages"][1]["content"].startswith(text) for text in answers)
    assert kinds["sum"] > 11_000
    assert min(kinds[kind] for kind in ("problem", "kind", "continue")) > 30


def test_the_second_stage_has_something_to_prune():
    rows = list(conversations.stage_2())
    num_good = 2960 + 240
    assert len(rows) == num_good + 320 + 160
    texts = Counter(json.dumps(row) for row in rows)
    assert sum(count > 1 for count in texts.values()) == 320
    spoilt = [row for row in rows if f" {row['answer']}." not in row["messages"][1]["content"]]
    assert len(spoilt) == 160
    assert sum(not row["messages"][1]["content"] for row in spoilt) == 54


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("23 + 45 = 68.\nAnswer: 67.", True),
        ("Answer: 68.", True),
        ("23 + 45 =68", True),
        ("23 + 45 = 67.\nAnswer: 68.", False),
        ("68", False),
        ("= -68", False),
        ("= 680", False),
        ("", False),
    ],
)
def test_the_first_result_counts(text: str, is_right: bool):
    assert sums.is_right(text, 23, 45) == is_right


def test_a_model_is_asked_each_sum_once(tmp_path: Path, tiny_tokenizer: Path, monkeypatch, capsys):
    from titan_motif.components.preparation.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_tokenizer).tokenizer
    held_out = split_sums()[1][:200]
    pairs = {question(a, b): (a, b) for a, b in held_out}
    seen: Counter[str] = Counter()

    def continue_prompts(model, prompts, sampling, max_new_tokens, stop_tokens):
        assert sampling.temperature == 0
        assert {"<|endoftext|>", "<|end|>"} == {tokenizer.id_to_token(x) for x in stop_tokens}
        rows = []
        for prompt in prompts:
            text = tokenizer.decode(prompt, skip_special_tokens=False)
            asked = next(line for line in text.splitlines() if "What is" in line)
            seen["chat" if "<|assistant|>" in text else "plain"] += 1
            a, b = pairs[asked.removeprefix("Question: ").removesuffix("<|end|>")]
            # The chat knows a third of them, the plain form a tenth.
            knows = a % (3 if "<|assistant|>" in text else 10) == 0
            found = answer(a, b + (0 if knows else 1))
            rows.append(Continuation(prompt, 0, tokenizer.encode(found).ids))
        return rows

    monkeypatch.setattr(sums, "continue_prompts", continue_prompts)
    monkeypatch.setattr(sums, "load_model", lambda checkpoint: None)
    monkeypatch.setattr(sums, "tokenizer_folder_of", lambda checkpoint: tiny_tokenizer)
    table = tmp_path / "table.json"
    assert sums.main([str(tmp_path), "--base", "--json", str(table)]) == 0
    assert seen == {"chat": 200, "plain": 200}
    best = sum(a % 3 == 0 for a, _ in held_out)
    assert json.loads(table.read_text())[str(tmp_path)] == {"num_right": best, "num_asked": 200}
    assert f"({best} of 200)" in capsys.readouterr().out


def test_both_files_are_written(tmp_path: Path, monkeypatch):
    for name in ("NUM_SUMS", "NUM_PROBLEMS", "NUM_TEXTS"):
        monkeypatch.setattr(conversations, name, 40)
    conversations.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage1.jsonl", "stage2.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "stage1.jsonl").read_text().splitlines()]
    assert rows == list(conversations.stage_1())
