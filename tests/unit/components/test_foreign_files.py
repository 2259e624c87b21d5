"""Files that may come from a stranger are looked at before they are opened."""

import os
from pathlib import Path

import pytest

from titan_motif.components.foreign_files import (
    check_file,
    inside,
    parse_json,
    printable,
    read_json,
)


def test_a_name_in_a_folder_is_its_file(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    assert inside(tmp_path, "sub/a.json") == tmp_path / "sub/a.json"
    (tmp_path / "b.json").symlink_to("sub/a.json")  # within the folder
    assert inside(tmp_path, "b.json") == tmp_path / "b.json"
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "sub")  # the folder itself is the user's own name
    assert inside(linked, "a.json") == linked / "a.json"


@pytest.mark.parametrize("name", ["", "../a", "sub/../../a", "/etc/passwd", "a\0b", ".."])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="names no file in"):
        inside(tmp_path, name)


@pytest.mark.parametrize("form", ["file", "folder", "chain", "absolute"])
def test_a_link_out_is_refused(tmp_path: Path, form: str):
    folder, outside = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    outside.mkdir()
    (outside / "a").write_text("{}")
    name = {"folder": "link/a"}.get(form, "link")
    target = {"file": "../out/a", "folder": "../out", "chain": "other", "absolute": outside / "a"}
    (folder / "link").symlink_to(target[form])
    (folder / "other").symlink_to("../out/a")
    with pytest.raises(ValueError, match=r"is a link out of .*, which is not followed; copy what"):
        inside(folder, name)


def test_what_is_no_plain_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no plain file"):
        check_file(tmp_path / "pipe", 10)  # and does not wait for a writer
    with pytest.raises(ValueError, match="no plain file"):
        read_json(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError):
        check_file(tmp_path, 10)
    (tmp_path / "large").write_text(" " * 11)
    with pytest.raises(ValueError, match="11 bytes; at most 10 are read"):
        check_file(tmp_path / "large", 10)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200_000, "nested more than 100 deep"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "the name 'c' stands twice in an object"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ("1" * 5000, "Exceeds the limit"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_is_no_plain_data_is_refused(text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_a_records_figures_may_be_none(tmp_path: Path):
    assert str(parse_json('{"loss": NaN}', is_record=True)) == "{'loss': nan}"
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        parse_json("[" * 101 + "]" * 101, is_record=True)
    assert parse_json("[" * 100 + "]" * 100) is not None


def test_what_steers_a_terminal_is_escaped():
    assert printable("a \x1b[2J\r\n\u202eb\udcff\u00e9") == "a \\x1b[2J\\r\\n\\u202eb\\udcff\u00e9"
    assert printable("a\n\x07b", "\n") == "a\n\\x07b"
