"""The local tasks: what is asked, that it is held out, and how answers are judged."""

import math
from pathlib import Path

import pytest
from small_models import write_source

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif.components.preparation.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from titan_motif.corpus import mathematics
from titan_motif.corpus import sums as corpus_sums
from titan_motif.evaluation.local_tasks import arithmetic, held_out, needle, perplexity, sums
from titan_motif.evaluation.local_tasks.setting import Setting

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sums_are_held_out_and_judged():
    rows = sums.held_out_sums()
    assert len({(row["a"], row["b"]) for row in rows}) == len(rows) == 204
    assert rows == sums.held_out_sums()
    texts = {f"Question: What is {row['a']} + {row['b']}?" for row in rows}
    assert not texts & held_out.corpus_questions()
    assert all(corpus_sums.is_held_out(row["b"], row["a"]) for row in rows)
    share = sum(corpus_sums.is_held_out(a, b) for a in range(100) for b in range(100)) / 1e4
    assert 0.08 < share < 0.12
    seven = {"a": 7, "b": 35}
    for reply, is_right in (
        (" 42.\n", 1),
        ("7 + 35 = 42", 1),
        ("\n 42.\nQuestion: What is 1 + 1?", 1),
        ("42 or 43", 0),
        ("142", 0),
        ("-42", 0),
        ("", 0),
    ):
        assert sums.judge(seven, [reply]) == {"exact_match": is_right}
    assert sums.judge(seven, [sums.answer(seven)]) == {"exact_match": 1}


def test_arithmetic_is_held_out_and_judged():
    rows = arithmetic.held_out_problems()
    assert len(rows) == 216
    problems = {f"Question: {row['question']}\n{row['worked']}" for row in rows}
    assert len(problems) == 216
    corpus = mathematics.generate(0)
    assert not problems & {next(corpus) for _ in range(20_000)}
    for row in rows:
        assert arithmetic.judge(row, [arithmetic.worked_answer(row)]) == {"exact_match": 1}
        wrong = row["worked"].replace("Answer: ", "Answer: 1")
        assert arithmetic.judge(row, [wrong]) == {"exact_match": 0}
    assert arithmetic.judge({"answer": "7"}, ["Answer: 7. Answer: 8."]) == {"exact_match": 1}
    assert arithmetic.judge({"answer": "7"}, ["7"]) == {"exact_match": 0}


@pytest.mark.parametrize("length", [256, 1024])
def test_needles_lie_at_their_depths(tokenizer_folder: Path, length: int):
    tokenizer = load_tokenizer(tokenizer_folder).tokenizer

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    rows = needle.haystacks(length, count, per_depth=3)
    assert [row["depth"] for row in rows] == [d for d in needle.DEPTHS for _ in range(3)]
    for row in rows:
        text, right = row["text"], row["choices"][row["target"]]
        before, _, asked = text.rpartition("\n")
        assert f"{asked} {right}." in before
        assert all(f"is {choice}." in before for choice in row["choices"])
        assert count(f"{text} {right}") <= length
        if length > 256:
            assert count(text) > length - 120
            place = before.index(f"{asked} {right}.") / len(before)
            assert abs(place - row["depth"] / 100) < 0.1
    assert len({row["target"] for row in rows}) > 1


def test_needles_longer_than_the_network_are_left_out(tokenizer_folder: Path):
    made = needle.tasks(Setting(tokenizer_folder, max_length=1024))
    assert [task["task"] for task in made] == ["needle_256", "needle_1024"]
    with pytest.raises(ValueError, match="shortest text has 256 tokens; the network is given at m"):
        needle.tasks(Setting(tokenizer_folder, max_length=255))


def test_documents_of_a_split(tokenizer_folder: Path, tmp_path: Path):
    texts = ["the rain €", "a dog", "stay on <|endoftext|> the plain"]
    split = write_source(tmp_path / "data" / "web", tokenizer_folder, texts)
    tokenizer = load_tokenizer(tokenizer_folder).tokenizer
    assert perplexity.documents(split, tokenizer_folder) == [
        {"text": t, "bytes": len(t.encode()), "tokens": len(tokenizer.encode(t).ids)} for t in texts
    ]
    assert perplexity.data_groups(tmp_path / "data") == {"web": [split]}
    assert perplexity.data_groups(tmp_path / "data" / "web") == {"web": [split]}
    with pytest.raises(ValueError, match=r"neither it nor a folder in it holds validation/tokens"):
        perplexity.data_groups(tmp_path)
    save_tokenizer(train_tokenizer(["another " * 9], 264), tmp_path / "data" / "tokenizer")
    with pytest.raises(ValueError, match="was prepared with another tokenizer than that of"):
        perplexity.documents(split, tokenizer_folder)
    (split / "document_offsets.npy").unlink()
    with pytest.raises(ValueError, match=r"document_offsets.npy: no such file; perplexity is of"):
        perplexity.documents(split, tokenizer_folder)


def test_perplexitys_sums_are_of_all_documents():
    items = [
        perplexity.measure({"bytes": b, "tokens": t}, [x]) for x, b, t in ((-9, 6, 2), (-1, 4, 3))
    ]
    assert perplexity.nats([item["nats_per_token"] for item in items]) == pytest.approx(2.0)
    assert perplexity.bits([item["bits_per_byte"] for item in items]) == pytest.approx(
        1 / math.log(2)
    )
    with pytest.raises(ValueError, match="perplexity needs held-out documents, and no run is"):
        perplexity.tasks(Setting(Path("nowhere"), 64))
