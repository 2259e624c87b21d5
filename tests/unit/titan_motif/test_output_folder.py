"""A folder that is written beside itself: whose work it is, and what becomes of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from titan_motif.interchange.output_folder import made


def write(folder: Path, text: str = "whole") -> None:
    with made(folder, 0) as work:
        (work / "file").write_text(text, encoding="utf-8")


def test_a_folder_appears_whole_and_nothing_is_left_beside_it(tmp_path: Path):
    with made(tmp_path / "out", 0) as work:
        (work / "file").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["file"]
    assert (tmp_path / "out" / "file").read_text() == "whole"


def test_an_error_leaves_nothing_but_an_empty_folder_that_was_there(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path / "out", "half \ud800")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []
    write(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["file"]


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_a_user_has_under_the_name_of_the_work_is_kept(is_folder: bool, tmp_path: Path):
    mine = tmp_path / "out.writing"
    if is_folder:
        mine.mkdir()
    file = mine / "novel.txt" if is_folder else mine
    file.write_text("precious")
    with pytest.raises(ValueError, match=r"out\.writing: holds something else, where the work was"):
        write(tmp_path / "out")
    assert file.read_text() == "precious"
    assert not (tmp_path / "out").exists()


KILLED = """
import os, sys
from pathlib import Path
from titan_motif.interchange.output_folder import made
with made(Path(sys.argv[1]), 0) as work:
    (work / "half").touch()
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_named_and_its_work_is_taken_up_after_a_kill(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        told = rf"in use by another command \(process {process.pid}\); wait for its end, or stop it"
        with pytest.raises(ValueError, match=told):
            write(tmp_path / "out")
        (half,) = tmp_path.glob("out.writing/*/half")
        assert half.is_file()
        process.kill()
    write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["file"]


def test_what_another_process_has_finished_meanwhile_is_kept(tmp_path: Path, monkeypatch):
    import titan_motif.interchange.output_folder as module

    locked = module.locked

    def locked_late(work: Path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("whole")
        return locked(work)

    monkeypatch.setattr(module, "locked", locked_late)
    expected = re.escape(f"{tmp_path / 'out'}: holds something, which is not replaced")
    with pytest.raises(ValueError, match=expected):
        write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["theirs"]
