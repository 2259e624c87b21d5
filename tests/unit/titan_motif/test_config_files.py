"""Files that are no TOML, or no files: one line that names the line, and what stands there."""

import os
import re
from pathlib import Path

import pytest

import titan_motif.device  # noqa: F401
from titan_motif.config_files import ConfigError, read_files
from titan_motif.config_loading import load_config

BAD = {
    "a key twice": (b"[a]\nx = 1\nx = 2\n", ":3: not valid TOML: Cannot overwrite a value; found"),
    "the last": (b"a.b = 1\na = 2", ":2: not valid TOML: Cannot overwrite a value; found 'a = 2'"),
    "a table twice": (b"[a]\n[b]\n[a]\n", ":3: not valid TOML: Cannot declare ('a',) twice"),
    "no end": (b'[a]\nx = "y\nz = 1\n', ":2: not valid TOML: Illegal character '\\n'; found"),
    "no bracket": (b"[a]\nx = [1,\n2\n\n", ":3: not valid TOML: Unclosed array; found '2'"),
    "NUL": (b"[a]\nx = \x00", ":2: not valid TOML: Invalid value; found 'x = \\x00'"),
    "a mark": (b"\xef\xbb\xbf[a]\n", ":1: begins with a byte-order mark; UTF-8 without one is"),
    "Latin 1": (b'[a]\n# gr\xfcn\nx = 1\n', ":2: byte 0xfc is not UTF-8, which is needed"),
    "UTF-16": ("[a]".encode("utf-16"), ":1: byte 0xff is not UTF-8"),
    "deep": (b"[a]\nx = " + b"[" * 5000 + b"]" * 5000, ":2: cannot be read: "),
    "deep and open": (b'a = """\n"""\nx = ' + b"[" * 5000 + b"'", ":3: cannot be read: "),
    "digits": (b"# a\n[a]\nx = " + b"1" * 5000, ":3: cannot be read: Exceeds the limit (4300"),
    "digits in a list": (b"x = [1,\n" + b"1" * 5000 + b"]", ":1: cannot be read: Exceeds the"),
    "parts": (b"x = 1\n" + b".".join([b"a"] * 3000) + b" = 1", ":2: cannot be read: "),
    "parts of a table": (b"x = 1\n[" + b".".join([b"a"] * 3000) + b"]\n[", ":2: cannot be read: "),
    "U+2028": ("# \u2028\n# \u2028\nx =".encode(), ":3: not valid TOML: Invalid value; found 'x ="),
    "form feed": (b"\n\n\x0c", ":3: not valid TOML: Invalid statement; found '\\x0c'"),
    "size": (b"#" * (2**20 + 1), ": has more than 1,048,576 bytes; a job's file is needed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_answered_with_its_line(case: str, tmp_path: Path):
    content, told = BAD[case]
    file = tmp_path / "job.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(f"{file}{told}")) as raised:
        read_files(file)
    assert len(str(raised.value).splitlines()) == 1


def test_windows_lines_are_lines(tmp_path: Path):
    file = tmp_path / "job.toml"
    file.write_bytes(b"[a]\r\nx = 1\r\n")
    assert read_files(file) == [(file, {"a": {"x": 1}})]


def test_what_is_no_file(tmp_path: Path):
    (tmp_path / "debug.toml").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (tmp_path, f"{tmp_path}: is a folder; a TOML file is needed"),
        (tmp_path / "pipe", f"{tmp_path}/pipe: is no regular file; a TOML file is needed"),
        (tmp_path / "debgu.toml", "no such file; did you mean"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
        (tmp_path / "debug.toml/x.toml", "debug.toml/x.toml: no such file"),
    ):
        with pytest.raises(ConfigError, match=re.escape(told)):
            read_files(path)


def test_a_mistake_is_told_in_the_file_that_has_it(tmp_path: Path):
    (tmp_path / "bad.toml").write_text("[optimizer]\nlrr = 1.0")
    (tmp_path / "top.toml").write_text("base = 'bad.toml'\n")
    told = re.escape(f"{tmp_path}/bad.toml:2: optimizer.lrr is not a setting")
    with pytest.raises(ConfigError, match=told):
        load_config(["--job.config_file", str(tmp_path / "top.toml")], world_size=1)


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("''", "base is ''; the name of a TOML file is needed"),
        ("3", "base is 3; the name of a TOML file is needed"),
        ("[]", "base is []; the name of a TOML file is needed"),
        (r'"a\u0000"', r"base is 'a\x00'; the name of a TOML file is needed"),
        ("'other.toml'", "base is 'other.toml'; {folder}/other.toml: no such file"),
        ("'pipe'", "base is 'pipe'; {folder}/pipe: is no regular file; a TOML file is needed"),
        ("'.'", "base is '.'; {folder}: is a folder; a TOML file is needed"),
        (f"'{'x' * 300}'", "xx: cannot be read: File name too long"),
        ("'second.toml'", "second.toml:2: base is 'first.toml'; that is based on this file"),
    ],
)
def test_a_base_that_is_none_is_told_with_its_line(base: str, told: str, tmp_path: Path):
    (tmp_path / "first.toml").write_text(f"base = {base}\n")
    (tmp_path / "second.toml").write_text("# on\nbase = 'first.toml'\n")
    os.mkfifo(tmp_path / "pipe")
    place = "" if told[0] in "sx" else f"{tmp_path}/first.toml:1: "
    with pytest.raises(ConfigError, match=re.escape(place + told.format(folder=tmp_path))):
        read_files(tmp_path / "first.toml")
