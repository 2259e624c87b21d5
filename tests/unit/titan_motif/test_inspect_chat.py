"""`titan-motif data inspect --chat`: packed samples, and what is learnt of them."""

import json
from pathlib import Path

import pytest

from titan_motif import cli
from titan_motif.components.sft.prepare import ChatOptions, prepare_chat


@pytest.fixture
def packed(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    """A source of four conversations of two turns."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "the cat"},
                {"role": "assistant", "content": f"rat {i}"},
                {"role": "user", "content": "sat"},
                {"role": "assistant", "content": "mat"},
            ]
        }
        for i in range(4)
    ]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ChatOptions(seq_len=64, validation_share=0.0)
    prepare_chat([str(file)], tiny_tokenizer, tmp_path / "packed", options)
    return tmp_path / "packed"


def test_what_is_learnt_is_marked(packed: Path, tiny_tokenizer: Path, tmp_path: Path, capsys):
    table = tmp_path / "table.json"
    more = ["--tokenizer", str(tiny_tokenizer), "--samples", "2", "--json", str(table), "--verify"]
    capsys.readouterr()
    assert cli.main(["data", "inspect", str(packed), "--chat", *more]) == 0
    told = capsys.readouterr().out
    assert told.count("2 stretches that are learnt") == 2
    first = told.split("--- sample 0, ")[1].split("--- sample 1")[0]
    assert first.partition("\n")[2].strip() == (
        "<|user|>\nthe cat<|end|>\n<|assistant|>\n[[rat 0<|end|>]]\n"
        "<|user|>\nsat<|end|>\n<|assistant|>\n[[mat<|end|>]]"
    )
    assert "verified: " in told
    content = json.loads(table.read_text())
    assert content["splits"]["train"]["documents"] == 4
    pieces = content["samples"][1]["pieces"]
    assert [piece["text"] for piece in pieces if piece["is_learnt"]] == [
        "rat 1<|end|>",
        "mat<|end|>",
    ]


def test_packed_and_plain_sources_are_told_apart(
    packed: Path, tiny_tokenizer: Path, tmp_path: Path, capsys
):
    capsys.readouterr()

    def failure(*arguments: str) -> str:
        assert cli.main(["data", "inspect", *arguments]) == 1
        return capsys.readouterr().err

    assert "holds packed conversations; --chat shows them" in failure(str(packed))
    assert "--chat needs --tokenizer" in failure(str(packed), "--chat")
    (packed / "train" / "labels.npy").unlink()
    tokenizer = ["--tokenizer", str(tiny_tokenizer)]
    told = failure(str(packed), "--chat", *tokenizer)
    assert "holds documents, not packed conversations; leave out --chat" in told
