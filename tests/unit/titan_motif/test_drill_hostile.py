"""Hostile files get nothing, and whoever watches their readers sees what they do."""

import ctypes
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from titan_motif import cli
from titan_motif.drill import hostile_watch
from titan_motif.drill.hostile import CASES, HOSTILE, judge, run
from titan_motif.drill.hostile_case import CANARY, PLANTED, Case, Place

STEER = "\x1b]0;renamed\x07"


def test_there_are_a_hundred_and_no_two_are_alike():
    assert HOSTILE.count == len(CASES) == len({case.name for case in CASES}) == 100
    assert HOSTILE.num_quick == 20
    assert all(case.is_quick for case in CASES[:20])


@pytest.mark.parametrize("number", range(20), ids=lambda number: CASES[number].name)
def test_a_hostile_file_gets_nothing(number: int, tmp_path: Path):
    outcome = run(number, tmp_path)
    assert outcome.is_held, outcome.told
    assert outcome.told.startswith(CASES[number].name)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20, 100), ids=lambda number: CASES[number].name)
def test_each_other_hostile_file_gets_nothing(number: int, tmp_path: Path):
    outcome = run(number, tmp_path)
    assert outcome.is_held, outcome.told


# ---- readers that are not held


def secret_of(folder: Path) -> Path:
    return folder.parent / "outside" / "secret"


def refuse(folder: Path) -> None:
    raise ValueError("no such thing")


def tell(folder: Path) -> None:
    raise ValueError(f"{CANARY} is no number")


def in_two_lines(folder: Path) -> None:
    raise ValueError("no\nsuch thing")


def fail(folder: Path) -> None:
    raise KeyError("a")


def open_outside(folder: Path) -> None:
    secret_of(folder).read_bytes()
    refuse(folder)


def list_outside(folder: Path) -> None:
    os.listdir(folder / "../outside")
    refuse(folder)


def follow(folder: Path) -> None:
    (folder / "link").symlink_to(secret_of(folder))
    (folder / "link").read_text()
    refuse(folder)


def return_secret(folder: Path) -> Any:
    return [{"a": (CANARY.encode(),)}]


def unpickle(folder: Path) -> None:
    pickle.loads((folder / "pickled").read_bytes())
    refuse(folder)


def start(folder: Path) -> None:
    subprocess.run(["true"], check=True)
    refuse(folder)


def connect(folder: Path) -> None:
    with socket.socket() as one:
        one.connect_ex(("127.0.0.1", 9))
    refuse(folder)


def import_planted(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    try:
        __import__(PLANTED)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(PLANTED, None)
    refuse(folder)


def load_library(folder: Path) -> None:
    (folder / "evil.so").write_bytes(b"")
    ctypes.CDLL(str(secret_of(folder)))


def take_memory(folder: Path) -> None:
    taken = bytearray(600_000_000)
    taken[::4096] = b"x" * len(taken[::4096])
    refuse(folder)


def take_time(folder: Path) -> None:
    time.sleep(1.5)
    refuse(folder)


def never_end(folder: Path) -> None:
    time.sleep(60)


UNHELD: dict[Callable[[Path], Any], str] = {
    tell: "what lies outside was told",
    return_secret: "what lies outside was told",
    in_two_lines: "not refused in one line",
    fail: "refused with KeyError",
    open_outside: "open of",
    list_outside: "os.listdir of",
    follow: "open of",
    unpickle: "a payload has run",
    start: "subprocess.Popen true",
    connect: "socket.connect",
    import_planted: f"import {PLANTED}",
    load_library: "ctypes.dlopen",
    take_memory: "600 MB",
    take_time: "; no such thing",
    never_end: "not refused in one line",
    len: "refused with TypeError",
    str: "not refused",
}


@pytest.mark.parametrize("read", UNHELD, ids=lambda read: read.__name__)
def test_a_reader_that_gives_something_away_is_seen(read, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(hostile_watch, "MAX_SECONDS", 1.0)

    def build(place: Place) -> None:
        place.secret("secret")
        place.write("pickled", place.pickled())
        place.plant()

    outcome = judge(Case("a case", build, read), tmp_path)
    assert not outcome.is_held
    assert UNHELD[read] in outcome.told


def test_a_reader_that_refuses_is_held_and_its_own_files_are_its_affair(tmp_path: Path):
    def read(folder: Path) -> None:
        (folder / "a").write_text("x")
        os.listdir(folder)
        import difflib  # noqa: F401  (of the interpreter)

        raise ValueError((folder / "a").read_text())

    assert judge(Case("a case", lambda place: None, read), tmp_path) == (True, "a case: x")


def test_a_file_that_steers_a_terminal_is_told_as_text(tmp_path: Path, capsys):
    folder = tmp_path / f"model{STEER}"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"x")
    assert cli.main(["import", "--from", str(folder), "--to", str(tmp_path / "to")]) == 1
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "model\\x1b]0;renamed\\x07/config.json" in told
