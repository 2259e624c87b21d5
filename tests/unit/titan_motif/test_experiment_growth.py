"""The arms of the growth experiment, and what its page says of them."""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import pytest

from titan_motif.config_loading import load_config
from titan_motif.curriculum import plan_of
from titan_motif.experiments.cells import Cell
from titan_motif.experiments.growth import SMALL_SEED, Growth
from titan_motif.experiments.growth_page import (
    ARMS,
    _concluded,
    _told_equality,
    _told_reached,
    over_compute,
    over_tokens,
    reached,
)
from titan_motif.experiments.job import CellOptions, Devices
from titan_motif.growth.grow import plan_growth
from titan_motif.network import model_args

T = 307_200


def growth(tokens: int | None = None) -> Growth:
    return Growth(CellOptions(Devices("cpu", 1), tokens=tokens))


def row(last: float, *, small: dict | None = None) -> dict:
    """Return a finished cell's row: 10 steps of a million tokens, validated at 5 and 10."""
    found = {
        "step": 10,
        "tokens_seen": 10_000_000,
        "validation_loss": last,
        "validation_curve": {"step": [5, 10], "validation_loss": [last + 1, last]},
        "flops_per_token": {"small": 1_000_000, "large": 4_000_000},
    }
    return found if small is None else found | {"small": small}


def test_the_debug_model_is_grown_from_half_of_it():
    """Half width and depth, 1:1 heads; the result is what every arm's network is."""
    experiment = growth()
    small, large = experiment.small, experiment.large
    assert (small.dim, small.n_layers, small.hidden_dim) == (80, 2, 224)
    assert (small.num_signal_heads, small.num_groups, small.n_kv_heads) == (2, 2, 4)
    assert (large.dim, large.n_layers, large.num_signal_heads) == (160, 4, 8)
    assert plan_growth(small, large).lam_init == experiment.lam_init
    assert experiment.lam_init[0] == experiment.lam_init[1] == small.layer_lam_init[0]


def test_jobs_differ_as_intended():
    """In tokens alone; the small model's in its shape and its seed."""
    experiment = growth()

    def job(overrides):
        return load_config([*experiment.base.settings, *overrides], 1, runs_here=False)

    jobs = {arm: job(experiment.overrides(Cell(arm, 2))) for arm in ARMS}
    small = job(experiment.small_overrides(2))
    assert jobs["grown"] == jobs["scratch"]
    assert {found.debug.seed for found in jobs.values()} == {2}
    assert small.debug.seed == 2 + SMALL_SEED
    assert model_args(small) == experiment.small
    assert model_args(jobs["scratch_all"]) == model_args(jobs["scratch"])
    tokens = {arm: plan_of(found, 1).total_tokens for arm, found in jobs.items()}
    assert tokens["grown"] == tokens["scratch"] == plan_of(small, 1).total_tokens == T
    # As much compute as the small model's training and the large one's together, within a step.
    cost = {name: flops for name, (_, flops) in experiment.costs.items()}
    spent = T * (cost["small"] + cost["large"])
    assert abs(tokens["scratch_all"] * cost["large"] - spent) <= 512 * cost["large"]
    assert T < tokens["scratch_all"] < 2 * T


def test_tokens_are_asked_for():
    experiment = growth(10_300)
    assert [experiment.tokens_of(arm) for arm in ("grown", "scratch")] == [10_240, 10_240]


def test_a_loss_is_reached_between_two_points():
    line = [0.0, 10.0, 20.0], [4.0, 3.0, 3.5]
    assert reached(line, 5.0) == 0.0
    assert reached(line, 3.25) == pytest.approx(7.5)
    assert reached(line, 2.9) is None


def test_compute_has_the_small_models_training():
    """10M tokens at 1e6 operations are 10 TFLOP, before the large network's 4e6 a token."""
    grown = row(2.0, small=row(3.5))
    assert over_tokens(grown) == ([0.0, 5.0, 10.0], [3.5, 3.0, 2.0])
    assert over_compute(grown) == ([5.0, 10.0, 10.0, 30.0, 50.0], [4.5, 3.5, 3.5, 3.0, 2.0])
    assert over_compute(row(2.0)) == ([20.0, 40.0], [3.0, 2.0])


def test_page_tells_equality_and_what_was_reached():
    found = {
        "largest_difference": 2e-15,
        "largest_logit": 9.0,
        "loss_before": 3.5,
        "loss_after": 3.5,
        "tokens": 1536,
    }
    grown = row(2.0, small=row(3.5)) | {"equality": {"float64": found}}
    told = "\n".join(_told_equality([grown]))
    assert "1,536 held-out tokens" in told
    assert "| 1 | float64 | 2.0e-15 | 9.0 | 3.50000000 | 3.50000000 |" in told
    rows = {"scratch": [row(2.5)], "scratch_all": [row(3.0)], "grown": [grown]}
    told = "\n".join(_told_reached(rows))
    assert "To reach 2.5000" in told
    assert "| scratch_all | 0 of 1 | - | - |" in told
    assert "| grown | 1 of 1 | 7.500 | 40.000 |" in told
    (told,) = _concluded([grown])
    assert "no two logits are more than 2.0e-15 apart in float64 (of 1 cells)" in told
    assert "Its training goes on from that loss." in told  # 3.5, 3.0, 2.0
    (told,) = _concluded([{**grown, "small": row(2.5)}])
    assert "rises from 2.5000 to 3.0000, at the worst validation, and is back after 7.500" in told
    assert _concluded([]) == []
    assert _told_equality([]) == _told_reached({arm: [] for arm in ARMS}) == []
