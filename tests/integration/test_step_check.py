"""Numbers of a whole run that are made NaN or infinite on one of two ranks."""

import json
import math
import re
from pathlib import Path

import pytest
from whole_runs import ROOT, run

UNCHANGED = "Watched(is_refused=True, is_unchanged=True)"
MUON = ["--optimizer.name", "ParallelMuon", "--optimizer.qk_clip", "true"]
ADAMW = ["--optimizer.name", "AdamW", "--optimizer.qk_clip", "true"]
SHORT = ["--training.steps", "4", "--checkpoint.interval", "1", "--validation.enable=false"]


@pytest.mark.parametrize(
    ("place", "value", "optimizer", "told"),
    [
        ("loss", math.nan, MUON, "the loss of data-parallel rank 1 (micro-batch 1);"),
        ("loss", math.inf, ADAMW, "the loss of data-parallel rank 1 (micro-batch 1);"),
        ("gradient", math.inf, ADAMW, "the gradient norm, the gradient of output.weight;"),
        ("norm", math.inf, MUON, "the gradient norm"),
        ("logits", math.nan, MUON, "the largest attention logit"),
    ],
)
def test_a_step_with_such_a_number_on_one_rank_changes_nothing_on_any(
    rank_pool, arguments, place, value, optimizer, told
):
    settings = [*arguments, *optimizer, *SHORT]
    logs = rank_pool.run(run, 2, settings, str(ROOT), spoil=(place, value, 3, 1))
    for log in logs:
        assert log[-1] == UNCHANGED
        (skipped,) = [line for line in log if "skipped" in line]
        assert skipped.startswith(f"step 3 is skipped: not finite: {told}")
        assert any(line.startswith("step: 4/4 ") for line in log)
    if place == "loss":
        assert re.search(r"micro-batches: of (english|code|mathematics) \(group all\) \d+", skipped)
    else:
        assert "titan-motif data trace --step 3" in skipped


@pytest.mark.parametrize(
    ("place", "optimizer", "told"),
    [
        ("parameter", MUON, "the values of"),
        ("state", MUON, "the optimizer's state of"),
        ("state", ADAMW, "the optimizer's state of"),
    ],
)
def test_a_parameter_or_state_with_such_a_number_ends_the_run_before_it_is_saved(
    rank_pool, arguments, tmp_path: Path, place, optimizer, told
):
    settings = [*arguments, *optimizer, *SHORT]
    for log in rank_pool.run(run, 2, settings, str(ROOT), spoil=(place, math.nan, 3, 1)):
        assert log[-1] == UNCHANGED
        assert log[-2].startswith("NotFiniteState: step 3 changed nothing: not finite: ")
        assert told in log[-2]
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoint").glob("step-*"))
    assert steps == ["step-1", "step-2"]
    (log,) = rank_pool.run(run, 1, settings, str(ROOT))
    assert any(line.startswith("continuing from step 2 ") for line in log)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("gradient", "step 4 is skipped: not finite: the gradient norm, the gradient of output."),
        ("parameter", "NotFiniteState: step 4 changed nothing: not finite: the values of "),
    ],
)
def test_a_last_step_that_nobody_logs_or_saves_is_told_too(rank_pool, arguments, place, told):
    settings = [*arguments, *MUON, *SHORT, "--checkpoint.enable=false", "--metrics.log_freq=10"]
    for log in rank_pool.run(run, 2, settings, str(ROOT), spoil=(place, math.nan, 4, 1)):
        assert log[-1] == UNCHANGED
        assert any(line.startswith(told) for line in log), log


AVERAGED = ["--moving_average.enable", "--moving_average.interval_tokens=1"]
AVERAGED += ["--moving_average.num_checkpoints=2", "--training.steps=6"]


@pytest.mark.parametrize(
    ("step", "more", "told"),
    [
        (5, AVERAGED, "the moving average after step 5"),
        (4, ["--checkpoint.enable=false"], "what follows the last step"),
    ],
)
def test_what_an_update_made_is_found_before_it_is_replaced_or_used(
    rank_pool, arguments, step, more, told
):
    settings = [*arguments, *MUON, *SHORT, "--checkpoint.interval=2", *more]
    for log in rank_pool.run(run, 2, settings, str(ROOT), spoil=("update", math.nan, step, 1)):
        assert log[-2].startswith(f"NotFiniteState: {told} is left out: not finite: the values of ")


def test_a_resumed_run_measures_spikes_by_the_losses_of_before(rank_pool, arguments, tmp_path):
    """With a bound this low a step is a spike now and then, in both runs the same ones."""
    spikes = ["--step_check.loss_spike", "skip", "--step_check.spike_window", "3"]
    spikes += ["--step_check.spike_z_score", "0.5", "--step_check.max_skipped_steps", "20"]
    spikes += ["--optimizer.lr", "1e-5", "--metrics.log_freq", "1"]
    settings = [*arguments, *MUON, *spikes, "--checkpoint.interval", "5"]
    settings += ["--validation.enable=false", "--training.steps", "14"]
    whole = [*settings, "--job.dump_folder", str(tmp_path / "whole")]
    (log,) = rank_pool.run(run, 1, whole, str(ROOT))
    skipped = [line.partition(" is")[0] for line in log if "standard deviations above" in line]
    assert 2 <= len(skipped) < 11
    rank_pool.run(run, 1, settings, str(ROOT), 6)
    (second,) = rank_pool.run(run, 1, settings, str(ROOT))
    assert any(line.startswith("continuing from step 5 ") for line in second)
    again = [line.partition(" is")[0] for line in second if "standard deviations above" in line]
    assert again == [step for step in skipped if int(step.split()[1]) > 5]
    losses = [
        {(e["step"], e["loss"]) for e in map(json.loads, path.read_text().splitlines())}
        for path in (tmp_path / "run/metrics.jsonl", tmp_path / "whole/metrics.jsonl")
    ]
    assert losses[0] == losses[1]


def test_a_checkpoint_without_losses_begins_a_new_window(rank_pool, arguments):
    settings = [*arguments, *MUON, *SHORT]
    rank_pool.run(run, 1, [*settings, "--training.steps", "2"], str(ROOT))
    (log,) = rank_pool.run(run, 1, [*settings, "--step_check.loss_spike", "skip"], str(ROOT))
    assert any(line.endswith("has no loss_window: begun anew") for line in log)
    assert any(line.startswith("step: 4/4 ") for line in log)
