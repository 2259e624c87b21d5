"""What a run says that cannot go on, or has nothing left to do."""

from pathlib import Path

import numpy as np
import pytest
from whole_runs import ROOT, losses, run, run_main, summary_of


def assert_refused(answers, code: int, *parts: str) -> None:
    """Rank 0 prints one line, each rank hands it to torchrun, and none tells its stack."""
    for rank, (returned, stderr, message) in enumerate(answers):
        assert returned == code
        assert stderr == (f"error: {message['message']}\n" if rank == 0 else "")
        assert "\n" not in message["message"]
        assert all(part in message["message"] for part in parts)
        assert "py_callstack" not in message["extraInfo"]


def test_a_mistake_is_told_in_one_line_and_a_crash_with_its_stack(
    rank_pool, arguments, tmp_path: Path
):
    wanted = [*arguments, "--checkpoint.load_step", "4"]
    answers = rank_pool.run(run_main, 2, wanted, str(ROOT), str(tmp_path))
    assert_refused(answers, 1, "step-4 does not exist; complete steps: none")

    for split in ("train", "validation"):
        (tmp_path / "short" / split).mkdir(parents=True)
        np.save(tmp_path / "short" / split / "tokens.npy", np.zeros(32, dtype=np.uint16))
    short = ["--training.dataset", "prepared", "--training.dataset_path", str(tmp_path / "short")]
    answers = rank_pool.run(run_main, 2, [*arguments, *short], str(ROOT), str(tmp_path))
    assert_refused(answers, 2, str(tmp_path / "short"), "32 tokens")

    for code, _, message in rank_pool.run(
        run_main, 2, arguments, str(ROOT), str(tmp_path), crash=True
    ):
        assert code is None
        assert message["extraInfo"]["py_callstack"].startswith("Traceback")


def test_another_seed_stops_a_run_at_once(rank_pool, arguments, tmp_path: Path):
    arguments = [*arguments, "--training.steps", "2", "--checkpoint.interval", "1"]
    rank_pool.run(run, 2, arguments, str(ROOT))
    answers = rank_pool.run(
        run_main, 2, [*arguments, "--debug.seed", "1"], str(ROOT), str(tmp_path)
    )
    step = tmp_path / "run" / "checkpoint" / "step-2"
    assert_refused(answers, 1, f"{step}: the data loader's seed is 1", "Set debug.seed")


def test_a_run_that_has_blown_up_says_so_and_stops(rank_pool, arguments):
    """A learning rate that ends in infinities: no finite gradient after the first steps."""
    blown = ["--optimizer.name", "ParallelMuon", "--optimizer.lr", "1e30"]
    blown += ["--step_check.max_skipped_steps", "2", "--checkpoint.enable=false"]
    message = (
        r"TooManySkippedSteps: 3 steps in a row changed nothing, and "
        r"step_check.max_skipped_steps allows 2; step \d: not finite: "
    )
    with pytest.raises(AssertionError, match=message) as failed:
        rank_pool.run(run, 2, [*arguments, *blown], str(ROOT))
    assert str(failed.value).count("TooManySkippedSteps: 3 steps") == 2  # on both ranks


def test_a_checkpoint_of_another_optimizer_says_how_to_go_on(rank_pool, arguments):
    short = [*arguments, "--training.steps", "2", "--summary.enable=false"]
    rank_pool.run(run, 1, [*short, "--optimizer.name", "AdamW"], str(ROOT))
    more = [*short, "--training.steps", "3"]
    advice = r"Another optimizer, or another routing, wrote it: checkpoint.exclude_from_loading = "
    with pytest.raises(AssertionError, match=advice):
        rank_pool.run(run, 1, more, str(ROOT))
    (log,) = rank_pool.run(
        run, 1, [*more, "--checkpoint.exclude_from_loading", "optimizer"], str(ROOT)
    )
    assert any(line.startswith("continuing from step 2 ") for line in log)


def test_a_finished_run_says_that_nothing_is_left(rank_pool, arguments, tmp_path: Path):
    arguments = [*arguments, "--training.steps", "4", "--checkpoint.interval", "2"]
    rank_pool.run(run, 2, arguments, str(ROOT))
    first = summary_of(tmp_path / "run")
    assert first["tokens_per_second"] > 0
    for steps in (4, 3):
        (log, _) = rank_pool.run(run, 2, [*arguments, "--training.steps", str(steps)], str(ROOT))
        said = f"nothing left to train: 4 steps are done, and training.steps is {steps}"
        assert said in log
        again = summary_of(tmp_path / "run")
        for key in ("step", "train_loss", "validation_loss", "tokens_per_second"):
            assert again[key] == first[key], key


def test_a_folder_used_again_tells_of_the_new_run_alone(rank_pool, arguments, tmp_path: Path):
    arguments = [*arguments, "--checkpoint.enable=false", "--validation.enable=false"]
    rank_pool.run(run, 2, [*arguments, "--training.steps", "6"], str(ROOT))
    rank_pool.run(run, 2, [*arguments, "--training.steps", "2", "--debug.seed", "1"], str(ROOT))
    new, summary = losses(tmp_path / "run"), summary_of(tmp_path / "run")
    assert sorted(new) == [1, 2]
    assert summary["train_loss"] == new[2]
