"""`titan-motif experiment`: which cells it runs, what it keeps, and what it refuses in one line."""

import json
import os
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from titan_motif import cli
from titan_motif.experiments import command
from titan_motif.experiments.cells import Cell, choose_cells
from titan_motif.experiments.job import run_and_show
from titan_motif.experiments.measures import Measure
from titan_motif.experiments.page import Page


class Toy:
    """An experiment whose cells cost nothing; it counts them."""

    name = "gda"
    seeds_of = {"a": 2, "b": 1}  # noqa: RUF012
    setting = 1
    ran: list[str] = []  # noqa: RUF012

    def __init__(self, options):
        pass

    def prepare(self):
        pass

    def settings(self):
        return {"setting": self.setting}

    def run(self, cell, folder):
        self.ran.append(str(cell))
        if cell.arm == "b":
            raise RuntimeError("a chip\nis hot")
        return {
            "loss": 1.0,
            "tokens_seen": 1,
            "training_seconds": 1.0,
            "tokens_per_second": 1.0,
        }

    def tell(self, row):
        return "done"

    def page(self, command):
        measure = Measure("loss", lambda row: row["loss"], is_better_lower=True)
        return Page("gda", "Toy", "?", "-", ("a", "b"), (("a", "b"),), (measure,), (), command)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Put the toy in the place of gda; returns a function that calls the command."""
    monkeypatch.setattr(Toy, "ran", [])
    monkeypatch.setattr(command, "EXPERIMENTS", {"gda": Toy})
    folders = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "pages")]
    return lambda *words: cli.main(["experiment", "gda", "--device", "cpu", *folders, *words])


def test_resume_runs_what_is_missing_and_writes_the_page(toy, tmp_path, capsys):
    assert toy("--cells", "a:0") == 0
    page = tmp_path / "pages/gda.md"
    assert "Missing cells (arm:seed), 2 of 3: b:0, a:1." in page.read_text()
    assert toy("--cells", "a:0,a:1", "--resume") == 0
    assert Toy.ran == ["a:0", "a:1"]
    assert "Missing cells (arm:seed), 1 of 3: b:0." in page.read_text()
    assert "1 of 2 cells are there already" in capsys.readouterr().out
    # A cell that failed is told, is no result, and is tried again.
    for _ in range(2):
        assert toy("--resume") == 1
        assert capsys.readouterr().err == "error: b:0 failed: RuntimeError: a chip\n"
    assert Toy.ran[2:] == ["b:0", "b:0"]
    assert "b:0 failed: RuntimeError: a chip." in page.read_text()


def test_cells_of_other_settings_are_refused(toy, capsys, monkeypatch):
    monkeypatch.setattr(Toy, "setting", {"same": 0, "arms": {"a": ["x=1", "y=1"]}})
    assert toy("--cells", "a:0") == 0
    assert toy("--cells", "a:1") == 1
    assert "is there already; --resume goes on" in capsys.readouterr().err
    monkeypatch.setattr(Toy, "setting", {"same": 0, "arms": {"a": ["x=1", "y=2"]}})
    assert toy("--cells", "a:1", "--resume") == 1
    error = capsys.readouterr().err
    assert "its results are of setting.arms.a 'y=1', these would be of 'y=2'; --output" in error
    assert error.count("\n") == 1
    assert Toy.ran == ["a:0"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--cells", "c:0"], "ARM:SEED is needed"),
        (["--cells", "a:x"], "ARM:SEED is needed"),
        (["--cells", "a:0", "--seeds", "2"], "--seeds and --cells are given"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--time-limit", "0"], "--time-limit is 0"),
    ],
)
def test_wrong_options_are_one_line(toy, capsys, words, told):
    assert toy(*words) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not Toy.ran


def test_quick_is_one_seed(toy, tmp_path):
    assert toy("--quick") == 1  # b fails
    assert Toy.ran == ["a:0", "b:0"]


def test_a_cell_that_would_take_too_long_is_not_begun(toy, tmp_path, capsys):
    assert toy("--cells", "a:0") == 0
    file = tmp_path / "pages/gda/results.json"
    content = json.loads(file.read_text())
    content["cells"]["a:0"]["seconds"] = 100.0
    file.write_text(json.dumps(content))
    assert toy("--cells", "a:1", "--resume", "--time-limit", "50") == 0
    assert "a:1 is not begun: it may take 110 s" in capsys.readouterr().out
    assert Toy.ran == ["a:0"]


def test_what_it_started_ends_with_it(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    started = (  # it has more to say at its end than a pipe holds
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('x' * 200_000), sys.exit()))\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    shown = Mock(side_effect=lambda *words, **options: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr("builtins.print", shown)
    with pytest.raises(SystemExit) as exited:
        run_and_show([sys.executable, "-c", started], {}, "sleeping")
    assert exited.value.code == 143
    pid = int(shown.call_args[0][0])
    assert not Path(f"/proc/{pid}").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_seeds_come_in_turn():
    """So that what is there first is a comparison."""
    assert choose_cells({"a": 2, "b": 1}, None, "") == [Cell("a", 0), Cell("b", 0), Cell("a", 1)]
    assert choose_cells({"a": 2, "b": 1}, 2, "")[-1] == Cell("b", 1)


def test_two_commands_share_a_file(toy, tmp_path, monkeypatch):
    """One that began before the other's cell was finished keeps it."""

    def run(self, cell, folder):
        if cell.seed == 0:
            assert toy("--cells", "a:1", "--resume") == 0
        return Toy.run_alone(self, cell, folder)

    monkeypatch.setattr(Toy, "run_alone", Toy.run, raising=False)
    monkeypatch.setattr(Toy, "run", run)
    assert toy("--cells", "a:0") == 0
    assert Toy.ran == ["a:1", "a:0"]
    content = json.loads((tmp_path / "pages/gda/results.json").read_text())
    assert sorted(content["cells"]) == ["a:0", "a:1"]
    assert "Missing cells (arm:seed), 1 of 3: b:0." in (tmp_path / "pages/gda.md").read_text()
