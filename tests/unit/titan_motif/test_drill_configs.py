"""The drill's bad configs: all are refused, and what is not refused rightly is not held."""

import sys
from pathlib import Path

import pytest
import torch

import titan_motif.device  # noqa: F401
from titan_motif import check_config
from titan_motif.drill import configs
from titan_motif.drill.configs import CONFIGS, BadConfig, bad_configs, with_setting
from titan_motif.drill.written import paths_written

ROOT = Path(__file__).resolve().parents[3]
GOOD = (ROOT / "train_configs/debug.toml").read_bytes()
SPREAD = [i * CONFIGS.count // CONFIGS.num_quick for i in range(CONFIGS.num_quick)]


def test_there_are_as_many_and_each_is_another():
    found = bad_configs()
    assert len(found) == CONFIGS.count == 150
    assert len({(bad.content, bad.arguments, bad.processes) for bad in found}) == 150
    assert len({(bad.line, bad.words) for bad in found}) == 150  # and each is told otherwise
    assert all(bad.content != GOOD or bad.arguments or bad.processes != 2 for bad in found)


@pytest.mark.parametrize("case", SPREAD)
def test_a_bad_config_is_refused(case: int, tmp_path: Path):
    outcome = CONFIGS.run(case, tmp_path)
    assert outcome.is_held, outcome.told
    assert outcome.told.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


LR = "lr = 8e-3 "
BAD_LR = GOOD.replace(b"lr = 8e-3 ", b"lr = 0.0 ")
NOT_HELD = {
    "a good one": (
        BadConfig(GOOD, (), 2, "lr = ", (": optimizer.lr ",)),
        "it is not refused, with exit code 0",
    ),
    "a good command line": (
        BadConfig(GOOD, ("--training.steps", "5"), 2, None, ("training.steps",)),
        "it is not refused, with exit code 0",
    ),
    "another line": (
        BadConfig(BAD_LR, (), 2, "beta1 = ", ("optimizer.lr",)),
        "it names another line than that of 'beta1 = '",
    ),
    "another reason": (
        BadConfig(BAD_LR, (), 2, "lr = 0.0", ("optimizer.lr", "a finite number")),
        "it does not say 'a finite number'",
    ),
    "no command line": (
        BadConfig(BAD_LR, (), 2, None, ("optimizer.lr",)),
        "it does not say where",
    ),
}


@pytest.mark.parametrize("case", NOT_HELD)
def test_what_is_not_refused_rightly_is_not_held(case: str, tmp_path: Path, monkeypatch):
    bad, missed = NOT_HELD[case]
    monkeypatch.setattr(configs, "bad_configs", lambda: [bad])
    outcome = CONFIGS.run(0, tmp_path)
    assert not outcome.is_held
    assert outcome.told.startswith(missed)


def two_lines(argv):
    print("error: one\nand more", file=sys.stderr)
    return 2


def a_group(argv):
    try:
        torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    except AssertionError:
        print("error: somewhere", file=sys.stderr)
    return 2


def a_file(argv):
    Path("left").write_text("something")
    return 2


def a_crash(argv):
    raise OverflowError("int too large to convert to float")


FAULTY_CHECKS = {
    "two lines": (two_lines, "it is not refused by one line"),
    "a group": (a_group, "a process group was formed"),
    "a file": (a_file, "left was written"),
    "a crash": (a_crash, "it raises OverflowError: int too large"),
}


@pytest.mark.parametrize("case", FAULTY_CHECKS)
def test_a_check_that_does_more_than_refuse_is_found(case: str, tmp_path: Path, monkeypatch):
    check, told = FAULTY_CHECKS[case]
    accepts = check_config.main

    def main(argv):
        is_bad = Path(argv[3]).read_bytes() != GOOD
        return check(argv) if is_bad else accepts(argv)

    monkeypatch.setattr(check_config, "main", main)
    monkeypatch.setattr(configs, "bad_configs", lambda: [BadConfig(BAD_LR, (), 2, "lr", ("lr",))])
    outcome = CONFIGS.run(0, tmp_path)
    assert not outcome.is_held
    assert told in outcome.told


def test_where_the_good_one_is_not_accepted_nothing_is_held(tmp_path: Path, monkeypatch):
    bad = tmp_path / "base.toml"
    bad.write_bytes(BAD_LR)
    monkeypatch.setattr(configs, "_BASE", bad)
    monkeypatch.setattr(
        configs, "bad_configs", lambda: [BadConfig(BAD_LR, (), 2, "lr", ("optimizer.lr",))]
    )
    outcome = CONFIGS.run(0, tmp_path)
    assert not outcome.is_held
    assert outcome.told.startswith("base.toml itself is not accepted: error: ")


def test_a_setting_is_replaced_or_added_in_its_section():
    text = "[a]\nx = 1\n[[b]]\ny = 2\n"
    assert with_setting(text, "a.x", "3") == "[a]\nx = 3\n[[b]]\ny = 2\n"
    assert with_setting(text, "b.1.z", "4") == "[a]\nx = 1\n[[b]]\nz = 4\ny = 2\n"
    assert with_setting(text, "c.d", "5") == f"{text}\n[c]\nd = 5\n"


def test_what_is_written_is_heard_while_one_listens(tmp_path: Path):
    with paths_written() as found:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("x")
        (tmp_path / "file").read_text()
        (tmp_path / "file").rename(tmp_path / "other")
    (tmp_path / "later").touch()
    assert found == [tmp_path / "folder", tmp_path / "file", tmp_path / "file"]
