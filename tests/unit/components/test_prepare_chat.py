"""Conversations packed into sequences: what is in them, what is left out, what is refused."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchtitan.components.loss import IGNORE_INDEX

from titan_motif.components.curriculum.sources import TokenFile, TokenStream
from titan_motif.components.preparation.manifest import verify_files
from titan_motif.components.sft.conversations import Conversation
from titan_motif.components.sft.prepare import ChatOptions, prepare_chat
from titan_motif.components.sft.template import load_template

OPTIONS = ChatOptions(seq_len=64, validation_share=0.1)


def ask(question: str, answer: str) -> dict:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


ROWS = [ask(f"the cat {'sat ' * (i % 5)}{i}", f"{i} rats" * (1 + i % 3)) for i in range(60)]


@pytest.fixture
def lines(tmp_path: Path):
    """Write rows, or lines as they are, to a file."""

    def write(rows: list, name: str = "chat.jsonl") -> str:
        texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        content = b"\n".join([*texts, b""])
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        return str(tmp_path / name)

    return write


def packed_samples(folder: Path, seq_len: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return every sample of a split: its tokens, and the labels that each position has."""
    file = TokenFile(folder)
    found = []
    for begin, end in zip(file.offsets, file.offsets[1:], strict=False):
        assert begin // seq_len == (end - 1) // seq_len, "a sample crosses a sequence's end"
        labels = tuple(file.labels[begin:end].tolist())
        if set(labels) != {IGNORE_INDEX}:
            found.append((tuple(file.tokens[begin:end].tolist()), labels))
    return found


def expected_samples(tokenizer: Path, rows: list[dict]) -> list:
    """The same by the template alone, one by one."""
    template, found = load_template(tokenizer), []
    for row in rows:
        sample = template.encode(Conversation(row["messages"]))
        labels = [IGNORE_INDEX] * len(sample.tokens)
        for position in range(len(labels) - 1):
            if sample.is_learnt[position + 1]:
                labels[position] = int(sample.tokens[position + 1])
        found.append((tuple(sample.tokens.tolist()), tuple(labels)))
    return found


def test_every_sample_is_there_once_with_its_labels(tiny_tokenizer: Path, lines, tmp_path: Path):
    output = tmp_path / "packed"
    manifest = prepare_chat([lines(ROWS)], tiny_tokenizer, output, OPTIONS)
    train = packed_samples(output / "train", 64)
    held_out = packed_samples(output / "validation", 64)
    assert sorted(train + held_out) == sorted(expected_samples(tiny_tokenizer, ROWS))
    splits = manifest["splits"]
    assert (splits["train"]["documents"], splits["validation"]["documents"]) == (
        len(train),
        len(held_out),
    )
    assert 1 <= len(held_out) <= 15
    learnt = sum(label != IGNORE_INDEX for _, labels in train for label in labels)
    assert splits["train"]["learnt"] == learnt
    filled = splits["train"]["tokens"] - sum(len(tokens) for tokens, _ in train)
    assert splits["train"]["filling"] == filled
    assert splits["train"]["tokens"] == 64 * splits["train"]["sequences"]
    assert filled < 0.2 * splits["train"]["tokens"]
    assert manifest["chat_template"]["text"] == load_template(tiny_tokenizer).text
    assert list(verify_files(output, manifest)) == []
    assert not output.with_name("packed.preparing").exists()
    # The same again is nothing to do; anything else is not written over it.
    assert prepare_chat([lines(ROWS)], tiny_tokenizer, output, OPTIONS) == manifest
    with pytest.raises(ValueError, match=r"holds a source of other settings \(inputs\)"):
        prepare_chat([lines(ROWS[1:])], tiny_tokenizer, output, OPTIONS)
    with pytest.raises(ValueError, match=r"other settings \(chat\)"):
        prepare_chat([lines(ROWS)], tiny_tokenizer, output, ChatOptions(seq_len=32))


def test_a_run_reads_sequences_whole_and_knows_their_samples(
    tiny_tokenizer: Path, lines, tmp_path: Path
):
    output = tmp_path / "packed"
    prepare_chat([lines(ROWS)], tiny_tokenizer, output, OPTIONS)
    file = TokenFile(output / "train")
    stream = TokenStream(file, "chat", seed=1, cell_tokens=64)
    assert stream.epoch_tokens == len(file)
    seen = []
    for sequence in range(stream.num_cells):
        tokens, labels, documents = stream.read(64 * sequence, 64)
        begins = np.flatnonzero(np.diff(documents, prepend=-1))
        for begin, end in zip(begins, [*begins[1:], 64], strict=True):
            assert labels[end - 1] == IGNORE_INDEX, "nothing is predicted of the next sample"
            if (labels[begin:end] != IGNORE_INDEX).any():
                seen.append((tuple(tokens[begin:end]), tuple(labels[begin:end])))
    assert sorted(seen) == sorted(packed_samples(output / "train", 64))
    with pytest.raises(ValueError, match="packed for another length than 50"):
        TokenStream(file, "chat", seed=1, cell_tokens=50)
    (output / "train" / "document_offsets.npy").unlink()
    with pytest.raises(ValueError, match="no such file; packed samples need it"):
        TokenFile(output / "train")


def test_tables_and_compressed_lines_hold_the_same(tiny_tokenizer: Path, lines, tmp_path: Path):
    rows = [
        *ROWS[:20],
        {
            "messages": [
                *ROWS[20]["messages"],
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": "!", "reasoning_content": "Hm."},
            ]
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "chat.parquet", row_group_size=7)
    with pa.ipc.new_file(
        tmp_path / "chat.arrow", (table := pa.Table.from_pylist(rows)).schema
    ) as f:
        f.write_table(table)
    inputs = [str(tmp_path / "chat.parquet"), str(tmp_path / "chat.arrow")]
    inputs += [lines(rows), lines(rows, "chat.jsonl.gz")]
    found = []
    for number, name in enumerate(inputs):
        output = tmp_path / f"packed{number}"
        prepare_chat([name], tiny_tokenizer, output, OPTIONS)
        found.append(packed_samples(output / "train", 64))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) >= 15


def test_long_samples_are_left_out_or_cut(tiny_tokenizer: Path, lines, tmp_path: Path):
    rows = [ask("the cat", "rat " * 90), ask("cat " * 80, "rat"), *ROWS[:10]]
    dropped = prepare_chat([lines(rows)], tiny_tokenizer, tmp_path / "dropped", OPTIONS)
    assert (dropped["too_long"], dropped["cut"], dropped["unlearnt"]) == (2, 0, 0)
    cut = prepare_chat(
        [lines(rows)],
        tiny_tokenizer,
        tmp_path / "cut",
        ChatOptions(seq_len=64, too_long="cut", validation_share=0.0),
    )
    # Of the second nothing that is learnt is left.
    assert (cut["too_long"], cut["cut"], cut["unlearnt"]) == (0, 2, 1)
    assert cut["splits"]["train"]["documents"] == 11
    assert not (tmp_path / "cut" / "validation").exists()
    whole = expected_samples(tiny_tokenizer, rows[:1])[0]
    longest = max(packed_samples(tmp_path / "cut" / "train", 64), key=lambda x: len(x[0]))
    assert longest[0] == whole[0][:64]
    assert longest[1] == (*whole[1][:63], IGNORE_INDEX)


def test_many_that_are_too_long_are_told_loudly(
    tiny_tokenizer: Path, lines, tmp_path: Path, capsys
):
    long = [ask("the cat", "rat " * (90 + n)) for n in range(2)]
    prepare_chat([lines(ROWS[:18] + long)], tiny_tokenizer, tmp_path / "a", OPTIONS)
    assert "warning" not in capsys.readouterr().out
    prepare_chat([lines(ROWS[:17] + long)], tiny_tokenizer, tmp_path / "b", OPTIONS)
    assert (
        "chat: warning: 2 of 19 samples (11%) are left out, longer than 64 tokens: longer "
        "sequences would hold them, too_long = 'cut' their beginnings\n"
    ) in capsys.readouterr().out


def test_equal_samples_leave_nothing_to_hold_out(
    tiny_tokenizer: Path, lines, tmp_path: Path, capsys
):
    options = ChatOptions(seq_len=64, validation_share=0.0)
    prepare_chat([lines(ROWS[:1] * 2)], tiny_tokenizer, tmp_path / "none", options)
    assert "warning" not in capsys.readouterr().out
    prepare_chat([lines(ROWS[:1] * 2)], tiny_tokenizer, tmp_path / "some", OPTIONS)
    assert not (tmp_path / "some" / "validation").exists()
    assert (
        "chat: warning: nothing is held out, since all samples are equal: a run that validates "
        "(validation.enable) will find no validation samples; add others, or turn that off\n"
    ) in capsys.readouterr().out


def test_a_template_that_marks_nothing_has_nothing_to_learn(
    tiny_tokenizer: Path, lines, tmp_path: Path
):
    template = tmp_path / "silent.jinja"
    template.write_text(
        "{{ messages[0].content }}{% if tools %}{% generation %}a{% endgeneration %}{% endif %}"
    )
    reason = r"no samples \(0 bad, 0 longer than 64 tokens, 3 with nothing to learn\)"
    with pytest.raises(ValueError, match=reason):
        prepare_chat([lines(ROWS[:3])], tiny_tokenizer, tmp_path / "packed", OPTIONS, template)


BAD = [
    (b'{"messages": [', "broken JSON"),
    (b'"text"', "not an object, but str"),
    (b'{"messages": "\xff"}', "not UTF-8"),
    ({"text": "a"}, "no field 'messages'"),
    (ask("a<|end|>", "b"), r"a text holds the special token '<\|end\|>'"),
    (ask("a\ufdd1", "b"), r"message 1 has U\+FDD1, which is no character"),
    (b'{"note": ' + b"[" * 950 + b"]" * 950 + b"}", "nested more than 100 deep"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_sample_stops_it_by_its_line(
    tiny_tokenizer: Path, lines, tmp_path: Path, row, reason: str
):
    name = lines([*ROWS[:3], row, *ROWS[3:5]])
    with pytest.raises(ValueError, match=reason) as error:
        prepare_chat([name], tiny_tokenizer, tmp_path / "packed", OPTIONS)
    assert f"{name}, line 4: " in str(error.value)
    assert "of bad samples there is 1: mend them, or leave them out" in str(error.value)
    assert not (tmp_path / "packed").exists()


def test_bad_samples_can_be_left_out_with_their_reasons(
    tiny_tokenizer: Path, lines, tmp_path: Path, capsys
):
    name = lines([row for row, _ in BAD] + ROWS)
    options = ChatOptions(seq_len=64, bad_samples="drop")
    output = tmp_path / "packed"
    manifest = prepare_chat([name], tiny_tokenizer, output, options)
    assert manifest["bad_lines"] == len(BAD)
    listed = [json.loads(x) for x in (output / "bad_lines.jsonl").read_text().splitlines()]
    for number, (line, (_, reason)) in enumerate(zip(listed, BAD, strict=True), start=1):
        assert (line["file"], line["line"]) == (name, number)
        assert re.search(reason, line["reason"])
    assert f"bad samples: {len(BAD)} in all" in capsys.readouterr().out
    found = packed_samples(output / "train", 64) + packed_samples(output / "validation", 64)
    assert sorted(found) == sorted(expected_samples(tiny_tokenizer, ROWS))
    allowed = ChatOptions(seq_len=64, special_tokens="allow", validation_share=0.0)
    prepare_chat([lines([BAD[4][0]])], tiny_tokenizer, tmp_path / "allowed", allowed)
    (sample,) = packed_samples(tmp_path / "allowed" / "train", 64)
    end = load_template(tiny_tokenizer).tokenizer.token_to_id("<|end|>")
    assert sample[0].count(end) == 3


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        (ChatOptions(seq_len=1), "chat.jsonl", "the sequence length is 1; at least 2 is needed"),
        (ChatOptions(64, validation_share=0.6), "chat.jsonl", "0 to 0.5 is allowed"),
        (OPTIONS, "none.jsonl", "no such file or folder"),
        (OPTIONS, "empty.jsonl", "empty; a file of jsonl is needed"),
        (OPTIONS, "text.txt", "plain text has no rows; JSONL or a table is needed"),
        (OPTIONS, "table.parquet", "cannot be read as"),
        (ChatOptions(4), "chat.jsonl", r"no samples \(0 bad, 1 longer than 4 tokens, 0 with"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    tiny_tokenizer: Path, lines, tmp_path: Path, options: ChatOptions, name: str, reason: str
):
    lines(ROWS[:1])
    (tmp_path / "empty.jsonl").write_text("")
    for other in ("text.txt", "table.parquet"):
        (tmp_path / other).write_text("some text")
    with pytest.raises(ValueError, match=reason):
        prepare_chat([str(tmp_path / name)], tiny_tokenizer, tmp_path / "packed", options)
    assert not (tmp_path / "packed").exists()
