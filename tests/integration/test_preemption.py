"""A run that is told to stop: all ranks save together where it is, and it goes on bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from whole_runs import ROOT, command_line, losses, run

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import launch, run_control

FEW = ["--training.steps", "8", "--checkpoint.interval", "100", "--validation.freq", "4"]


@pytest.fixture(scope="module")
def whole(rank_pool, small_corpus: Path, tmp_path_factory) -> dict[int, float]:
    """Losses of the run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    rank_pool.run(run, 2, [*command_line(small_corpus, folder), *FEW], str(ROOT))
    return losses(folder)


@pytest.mark.parametrize(
    ("mode", "at", "saved_step"),
    [
        pytest.param("disabled", (5, 1), 4, id="accumulation"),
        pytest.param("disabled", (5, 3), 5, id="end of a step"),
        pytest.param("disabled", (1, 1), 0, id="first step"),
        pytest.param("disabled", (4, 3), 4, id="validation"),
        pytest.param("disabled", (4, 0), 4, id="in validation"),
        pytest.param("disabled", (5, -1), 4, id="waiting for data"),
        pytest.param("async", (5, 1), 4, id="accumulation, saving beside"),
        pytest.param("async", (8, 3), 8, id="last step"),
    ],
)
def test_it_stops_at_the_next_edge_and_loses_nothing(
    rank_pool, arguments, whole, tmp_path: Path, mode, at, saved_step
):
    arguments = [*arguments, *FEW, "--checkpoint.async_mode", mode]
    rank_pool.run(run, 2, arguments, str(ROOT), None, at)
    folder = tmp_path / "run"
    told = json.loads((folder / "preempted.json").read_text())
    assert (told["step"], told["signal"]) == (saved_step, "SIGTERM")
    assert 0 <= told["seconds"] < 60  # though it came to another rank than the one that writes it
    names = [path.name for path in (folder / "checkpoint").glob("*")]
    assert names == ([f"step-{saved_step}"] if saved_step else [])
    (log, _) = rank_pool.run(run, 2, arguments, str(ROOT))
    assert any(f"continuing from step {saved_step}" in line for line in log) == (saved_step > 0)
    assert losses(folder) == whole
    assert not (folder / "preempted.json").exists()


def test_a_finished_run_of_the_model_alone_is_not_stopped(rank_pool, arguments, tmp_path: Path):
    """Its last step cannot be continued from: it comes to its end."""
    arguments = [*arguments, *FEW, "--checkpoint.last_save_model_only"]
    rank_pool.run(run, 2, arguments, str(ROOT), None, (8, 3))
    assert (tmp_path / "run" / "summary.json").is_file()
    assert not (tmp_path / "run" / "preempted.json").exists()


def test_the_launcher_looks_for_the_mark_of_the_ranks():
    assert (launch.MARK, launch.EXIT_PREEMPTED) == (run_control.MARK, run_control.EXIT_PREEMPTED)


def test_without_checkpoints_it_says_that_nothing_is_saved(rank_pool, arguments, tmp_path: Path):
    arguments = [*arguments, *FEW, "--checkpoint.enable=false"]
    with pytest.raises(AssertionError, match="SIGTERM came after step 2, and nothing is saved"):
        rank_pool.run(run, 2, arguments, str(ROOT), None, (3, 1))
    assert not (tmp_path / "run" / "preempted.json").exists()


def started(arguments: list[str], settings: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Return the launcher of a run that has done a few steps."""
    command = [sys.executable, "-m", "titan_motif.launch", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "-m"]
    command += ["titan_motif.train", *arguments, "--training.steps", "4000", *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    history = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (history.exists() and len(history.read_text().splitlines()) > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return process


def children(process: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_whose_read_hangs_does_not_keep_its_rank(arguments, tmp_path: Path):
    process = started(arguments, ["--training.dataloader.num_workers=1"], tmp_path)
    ranks = children(process.pid)
    workers = [worker for rank in ranks for worker in children(rank)]
    assert (len(ranks), len(workers)) == (2, 2)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    time.sleep(2)  # what they have read ahead is used up
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert time.monotonic() - begin < 20  # torchrun kills ranks after 30
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    told = json.loads((tmp_path / "run" / "preempted.json").read_text())
    assert (tmp_path / "run" / "checkpoint" / f"step-{told['step']}" / "seal.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SIGTERM", ["--training.dataloader.num_workers=2"]),
        ("SIGINT", ["--checkpoint.async_mode=async"]),
        ("SIGUSR1", []),
        ("SIGHUP", []),
    ],
)
def test_the_launcher_returns_75(arguments, tmp_path: Path, name: str, settings: list[str]):
    process = started(arguments, settings, tmp_path)
    for _ in range(3):  # once is enough, more is harmless
        process.send_signal(getattr(signal, name))
        time.sleep(0.1)
    assert process.wait(60) == 75
    told = json.loads((tmp_path / "run" / "preempted.json").read_text())
    assert told["signal"] == name
    assert told["seconds"] < 20
    assert (tmp_path / "run" / "checkpoint" / f"step-{told['step']}" / "seal.json").is_file()
