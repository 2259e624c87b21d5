"""Inputs of every format: the same documents whatever the units; bad ones told with their place."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from titan_motif.components.preparation import units as units_module
from titan_motif.components.preparation.inputs import find_inputs, is_unchanged
from titan_motif.components.preparation.readers import plan_units, read_rows, read_unit
from titan_motif.components.preparation.units import BadLine, Document

TEXTS = [f"document {number}: naïve 한국어\r\nsecond line {'x' * number}" for number in range(40)]
ROWS = [{"id": n, "text": text, "licence": ("MIT", None)[n % 2]} for n, text in enumerate(TEXTS)]
EXPECTED = [Document(text, ("MIT", None)[n % 2]) for n, text in enumerate(TEXTS)]


def read(given: Sequence[str | Path], format_: str = "auto", **changes) -> list:
    """Return what all units hold, in their order; the units are of about 300 bytes."""
    fields = {"text_field": "text", "licence_field": ""} | changes
    unit_bytes = fields.pop("unit_bytes", 300)
    units = plan_units(
        find_inputs([str(x) for x in given], format_), **fields, unit_bytes=unit_bytes
    )
    return [found for unit in units for found in read_unit(unit, **fields)]


def refusal(given: Sequence[str | Path], format_: str = "auto", **changes) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        read(given, format_, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_rows(folder: Path, kind: str) -> Path:
    """Write the rows in a format and return what to name."""
    path = folder / f"rows.{kind.replace('arrow stream', 'arrow').replace('gzip', 'jsonl.gz')}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = pa.Table.from_pylist(ROWS)
    if kind == "jsonl":
        path.write_text("\ufeff" + lines.rstrip("\n"))
    elif kind == "gzip":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "parquet":
        pq.write_table(table, path, row_group_size=7)
    elif kind == "huggingface":
        import datasets

        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    else:
        writer = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
        with writer(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=7)
    return path


@pytest.mark.parametrize(
    "kind", ["jsonl", "gzip", "parquet", "arrow", "arrow stream", "huggingface"]
)
def test_every_format_gives_the_documents_whatever_the_units(kind: str, tmp_path: Path):
    path = write_rows(tmp_path, kind)
    for unit_bytes in (1, 300, 10**6):
        assert read([path], licence_field="licence", unit_bytes=unit_bytes) == EXPECTED
    units = plan_units(find_inputs([str(path)]), "text", "", unit_bytes=1)
    assert len(units) == {"gzip": 1, "jsonl": 40, "huggingface": 40}.get(kind, 6)
    assert len(plan_units(find_inputs([str(path)]), "text", "", unit_bytes=10**6)) == 1
    assert read([path]) == [Document(text, None) for text in TEXTS]


def test_files_of_text_are_documents_of_their_own(tmp_path: Path):
    for name, text in (("b/z.txt", "second"), ("a.txt", "first\r\n"), (".hidden/c.txt", "no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "b" / "empty.txt").touch()
    (tmp_path / "code.py").write_text("pass")
    expected = [Document(text, None) for text in ("first\r\n", "", "second")]
    assert read([tmp_path]) == read([tmp_path], unit_bytes=1) == expected
    assert Document("pass", None) in read([tmp_path], "text")
    assert read([tmp_path / "a.txt", tmp_path]) == expected  # each file once
    assert read([tmp_path / "**/*.txt"]) == expected
    (tmp_path / "code.py").write_bytes(b"one\ntwo \xff")
    (bad_line,) = read([tmp_path / "code.py"], "text")
    assert bad_line[:3] == (
        str(tmp_path / "code.py"),
        2,
        "not UTF-8 (invalid start byte); the file is left out",
    )


@pytest.mark.parametrize("unit_bytes", [1, 60, 10**6])
def test_bad_lines_are_told_with_their_place_and_the_rest_is_kept(unit_bytes: int, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    lines = {
        1: (b'{"text": "one"}', None),
        2: (b'{"text": "tw', "broken JSON (Unterminated string starting at column 10)"),
        3: (b"", None),
        4: (b"[1]", "not an object, but list"),
        5: (b'{"body": "x", "id": 3}', "no field 'text'; its fields are body, id"),
        6: (b'{"text": 3}', "the field 'text' is int; text is needed"),
        7: (b'{"text": "\xff"}', "not UTF-8 (invalid start byte at byte 10)"),
        8: (b'{"text": null}', "the field 'text' is null; text is needed"),
        9: (rb'{"text": "\ud800"}', "the field 'text' has half of a surrogate pair, which is no "),
        10: (b"[" * 100_000, "nested more than 100 deep"),
        11: (b'{"text": "last"}', None),
    }
    path.write_bytes(b"\n".join(line for line, _ in lines.values()) + b"\n")
    found = read([path], unit_bytes=unit_bytes)
    assert [one.text for one in found if isinstance(one, Document)] == ["one", "last"]
    bad_lines = {one.line: one for one in found if isinstance(one, BadLine)}
    expected = {number: reason for number, (_, reason) in lines.items() if reason}
    assert bad_lines.keys() == expected.keys()
    for number, bad_line in bad_lines.items():
        assert bad_line.file == str(path)
        assert bad_line.reason.startswith(expected[number])
        assert bad_line.excerpt == lines[number][0].decode(errors="replace")[:200]
    assert str(bad_lines[4]) == f"{path}, line 4: not an object, but list"


def test_rows_of_tables_that_are_no_text_are_told(tmp_path: Path):
    raw = pa.array([b"good", b"\xffbad", None, b"fine"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 4, raw.buffers(), null_count=1)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=2)
    assert read([path], unit_bytes=1) == [
        Document("good", None),
        BadLine(str(path), 2, "not UTF-8 (invalid start byte at byte 0)", "\ufffdbad"),
        BadLine(str(path), 3, "the field 'text' is null; text is needed", ""),
        Document("fine", None),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text"])
def test_a_document_that_memory_would_not_hold_is_put_aside(kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(units_module, "MAX_DOCUMENT_BYTES", 10)
    texts = ["naïve 789", "naïve 7890"]  # of 10 and of 11 bytes
    if kind == "jsonl":
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (tmp_path / "a.jsonl").write_text("".join(lines))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    else:
        for name, text in zip("ab", texts, strict=True):
            (tmp_path / f"{name}.txt").write_text(text)
    good, bad = read([tmp_path])
    assert good == Document("naïve 789", None)
    assert bad.reason.startswith("11 bytes of text; at most 10 are a document")
    assert bad.line == (1 if kind == "text" else 2)


def test_texts_of_other_types_and_licences_in_lists(tmp_path: Path):
    column = pa.array(["a", "b", "a"]).dictionary_encode()
    licences = pa.array([["MIT", "BSD"], [], None])
    pq.write_table(pa.table({"text": column, "licence": licences}), tmp_path / "a.parquet")
    expected = [Document("a", "MIT, BSD"), Document("b", None), Document("a", None)]
    assert read([tmp_path], licence_field="licence") == expected


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_mark_of_utf_8_begins_a_file_compressed_or_not(suffix: str, tmp_path: Path):
    file, content = tmp_path / f"chat.{suffix}", b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n'
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    (one,) = find_inputs([str(file)])
    assert list(read_rows(one)) == [(1, {"text": "a"}), (2, {"text": "b"})]
    assert read([file]) == [Document("a", None), Document("b", None)]


def test_maps_of_tables_are_objects(tmp_path: Path):
    maps = pa.map_(pa.string(), pa.map_(pa.string(), pa.int64()))
    rows = [[{"f": [("a", [("b", 1)]), ("c", [])]}], [{"f": None}], None]
    table = pa.table({"tools": pa.array(rows, type=pa.list_(pa.struct([("f", maps)])))})
    pq.write_table(table, tmp_path / "chat.parquet")
    (one,) = find_inputs([str(tmp_path / "chat.parquet")])
    assert list(read_rows(one)) == [
        (1, {"tools": [{"f": {"a": {"b": 1}, "c": {}}}]}),
        (2, {"tools": [{}]}),
        (3, {}),
    ]


def test_a_dataset_of_several_splits_is_asked_for_one(tmp_path: Path):
    import datasets

    one = datasets.Dataset.from_list(ROWS)
    folder = tmp_path / "both"
    datasets.DatasetDict({"train": one, "test": one.select([3, 1])}).save_to_disk(str(folder))
    told = f"{folder}: holds the splits test, train; name one of them, such as {folder / 'test'}"
    assert refusal([folder]) == told
    assert [one.text for one in read([folder / "test"])] == [TEXTS[3], TEXTS[1]]
    datasets.DatasetDict({"train": one}).save_to_disk(str(tmp_path / "single"))
    assert [one.text for one in read([tmp_path / "single"])] == TEXTS


def test_inputs_that_are_not_there_or_of_no_known_format(tmp_path: Path):
    assert (
        refusal([tmp_path / "none.jsonl"]) == f"{tmp_path / 'none.jsonl'}: no such file or folder"
    )
    assert refusal([tmp_path / "*.jsonl"]).endswith("*.jsonl: matches no file")
    assert refusal([]) == "no inputs; files, folders or patterns are needed"
    assert refusal([tmp_path]) == f"{tmp_path}: a folder without files of a known format"
    known = "auto, jsonl, parquet, arrow, text, huggingface"
    assert refusal([tmp_path], "csv") == f"unknown format 'csv'; one of {known} is needed"
    (tmp_path / "a.csv").write_text("text")
    assert "a.csv: its suffix tells no format; name one of jsonl, " in refusal([tmp_path / "a.csv"])
    (tmp_path / "a.jsonl").touch()
    told = f"{tmp_path / 'a.jsonl'}: empty; a file of jsonl is needed"
    assert refusal([tmp_path / "a.jsonl"]) == refusal([tmp_path]) == told
    (tmp_path / "a.md").touch()
    assert refusal([tmp_path / "a.md"]) == f"{tmp_path / 'a.md'}: empty; a file of text is needed"
    expected = f"{tmp_path}: files of several formats (1 of jsonl, 1 of text); name one of them"
    assert refusal([tmp_path]) == expected
    (tmp_path / "a.md").write_text("# Title")
    told = "plain text has no fields; the licence field 'licence' is none"
    assert refusal([tmp_path / "a.md"], licence_field="licence") == told


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream", "gzip"])
def test_a_truncated_file_is_one_line(kind: str, tmp_path: Path):
    path = write_rows(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:-50])
    needed = {"parquet": "a Parquet file", "gzip": "gzip"}.get(kind, "an Arrow file")
    assert refusal([path]).startswith(f"{path}: cannot be read as {needed}")
    path.write_bytes(b"something else")
    assert refusal([path]).startswith(f"{path}: cannot be read as {needed}")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream", "huggingface"])
def test_fields_of_tables_are_checked_before_anything_is_read(kind: str, tmp_path: Path):
    path = write_rows(tmp_path, kind)
    told = f"{path}: no field 'body'; its fields are id, text, licence"
    assert refusal([path], text_field="body") == told
    assert refusal([path], licence_field="body") == told
    told = rf"{re.escape(str(path))}: the field 'id' is int64; text is needed"
    assert re.fullmatch(told, refusal([path], text_field="id"))


def test_a_changed_file_is_noticed(tmp_path: Path):
    path = write_rows(tmp_path, "jsonl")
    (one,) = find_inputs([str(path)])
    assert is_unchanged(one)
    path.write_text("{}\n")
    assert not is_unchanged(one)
    path.unlink()
    assert not is_unchanged(one)
