"""The arms of the curriculum experiment, and what its page says of them."""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from dataclasses import asdict
from pathlib import Path

import pytest

from titan_motif.components.curriculum.schedule import Phase, weights_at
from titan_motif.config_loading import load_config
from titan_motif.curriculum import phases_of, plan_of
from titan_motif.experiments.cells import Cell
from titan_motif.experiments.curriculum import ARMS, CurriculumExperiment, reversed_in_time
from titan_motif.experiments.curriculum_page import mean_loss, tokens_of_groups
from titan_motif.experiments.job import CellOptions, Devices

ROOT = Path(__file__).resolve().parents[3]
TOKENS = 460_800


def curriculum(tokens: int | None = None) -> CurriculumExperiment:
    return CurriculumExperiment(CellOptions(Devices("cpu", 1), tokens=tokens))


def mixture(phases: list[Phase], token: int) -> dict[str, float]:
    """Return the shares at a token within a phase."""
    begin = 0
    for phase in phases:
        if token < phase.until_tokens:
            return weights_at(phase, (token - begin) / (phase.until_tokens - begin))
        begin = phase.until_tokens
    raise ValueError(token)


def test_the_first_arm_is_the_debug_runs_mixture():
    debug = load_config([f"--job.config_file={ROOT}/train_configs/debug.toml"], 1, runs_here=False)
    assert ARMS["curriculum"](curriculum().phases) == phases_of(debug, None)


def test_jobs_differ_in_their_phases_alone(tmp_path):
    experiment = curriculum()
    jobs = {
        arm: load_config(
            experiment.job_settings(Cell(arm, 1), tmp_path / f"{arm}_1"), 1, runs_here=False
        )
        for arm in ARMS
    }
    rest, plans = [], {}
    for arm, job in jobs.items():
        plans[arm] = plan_of(job, 1)
        settings = asdict(job)
        settings["curriculum"].pop("phases")
        settings["job"].pop("config_file")
        rest.append(settings)
    assert all(settings == rest[0] for settings in rest)
    assert rest[0]["debug"]["seed"] == 1
    first = plans["curriculum"]
    for arm, plan in plans.items():  # every step's tokens, of all arms
        assert list(plan.tokens) == list(first.tokens), arm
        assert list(plan.first_sequence) == list(first.first_sequence), arm
        assert plan.total_tokens == TOKENS


def test_arms_mix_as_they_are_called():
    arms = {arm: change(curriculum().phases) for arm, change in ARMS.items()}
    last = {"english": 0.3, "code": 0.33, "mathematics": 0.37}
    assert all(mixture(arms["final"], t) == pytest.approx(last) for t in range(0, TOKENS, 7777))
    for token in range(1, TOKENS, 7777):  # no phase's end is one of them
        there = mixture(arms["curriculum"], TOKENS - token)
        assert mixture(arms["hard_first"], token) == pytest.approx(there), token
        if token < 419_840:
            assert mixture(arms["code_over_math"], token) == mixture(arms["curriculum"], token)
    math, code = (mixture(arms[arm], 420_000) for arm in ("math_over_code", "code_over_math"))
    assert math == {"english": 0.3, "code": 0.2, "mathematics": 0.5}
    assert code == {"english": 0.3, "code": 0.5, "mathematics": 0.2}
    assert [phase.name for phase in arms["hard_first"]] == [
        "1_short",
        "2_short",
        "3_short",
        "4_long",
        "5_annealing",
    ]


def test_hard_first_reads_as_much_of_each_group():
    phases = curriculum().phases
    read = tokens_of_groups(phases)
    assert sum(read.values()) == pytest.approx(TOKENS)
    assert tokens_of_groups(reversed_in_time(phases)) == pytest.approx(read)
    assert read["mathematics"] == pytest.approx(327_680 * 0.2 + 92_160 * 0.275 + 40_960 * 0.37)


def test_fewer_tokens_are_shared_out_alike():
    """Phases end with a whole step, in all arms the same."""
    phases = curriculum(46_080).phases
    assert [phase.until_tokens for phase in phases] == [32_768, 40_960, 45_056]
    assert reversed_in_time(phases)[-1].until_tokens == 45_056


def test_page_tells_mixtures_and_pairs():
    experiment = curriculum()
    count = {group: {"tokens": 12} for group in ("english", "code", "mathematics")}
    experiment.manifest = {
        "settings": {"vocab_size": 1024},
        "splits": {"train": count, "validation": count},
        "files": {},
    }
    page = experiment.page("titan-motif experiment curriculum --resume")
    assert "| hard_first | 30/33/37 | 48/36/16 | 50/35/15 |" in page.setup
    assert "to 327,680 tokens sequences of 128, 1,024 a step" in page.setup
    assert page.compared[-1] == ("code_over_math", "math_over_code")
    assert mean_loss({"validation_losses": {"a": 1.0, "b": 3.0}}) == 2.0
