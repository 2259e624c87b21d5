"""The plan of a run: phases, ramps, edges, and what is refused."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from titan_motif.components.curriculum.schedule import (
    Phase,
    Segment,
    find_problems,
    is_changing,
    plan_run,
    weights_at,
)

FIRST = Phase("first", 4000, 10, 100, 100, {"a": 0.8, "b": 0.2}, {"a": 0.4, "b": 0.6})
SECOND = Phase("second", 10_000, 20, 200, 600, {"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5})
GROUPS = ("a", "b")


def test_a_plan_of_equal_steps():
    plan = plan_run([FIRST])
    assert (plan.num_steps, plan.total_tokens) == (40, 4000)
    assert plan.step(0) == (0, 10, 0, 10, 0)
    assert plan.step(39) == (0, 10, 390, 10, 3900)
    assert plan.step(3).tokens == 100
    assert plan.segments == [Segment(0, 400, 10)]
    assert plan.tokens_at(7) == 700
    assert plan.tokens_at(45) == 4500  # as if it went on
    for outside in (-1, 40):
        with pytest.raises(IndexError, match="the plan has 40"):
            plan.step(outside)


def test_a_ramp_grows_by_whole_sequences_and_every_sequence_is_counted():
    plan = plan_run([FIRST, SECOND])
    steps = [plan.step(i) for i in range(plan.num_steps)]
    ramp = [step.num_sequences for step in steps if step.phase == 1]
    assert ramp[0] == 10
    assert ramp == sorted(ramp)
    assert ramp[-1] in (28, 29, 30)
    # In the middle of the phase by tokens the batch is in the middle too.
    middle = next(step for step in steps if step.tokens_before >= 7000)
    assert middle.num_sequences == pytest.approx(20, abs=1)
    for before, after in itertools.pairwise(steps):
        assert after.first_sequence == before.first_sequence + before.num_sequences
        assert after.tokens_before == before.tokens_before + before.tokens
    # Edges snap to whole batches: off by half of one at most.
    assert steps[40].phase == 1
    assert abs(plan.total_tokens - 10_000) <= 300


def test_batches_are_rounded_to_what_ranks_share():
    phase = replace(SECOND, until_tokens=60_000, batch_tokens=240, batch_tokens_end=960)
    plan = plan_run([phase], batch_multiple=4)
    sizes = {plan.step(i).num_sequences for i in range(plan.num_steps)}
    assert sizes == {12, 16, 20, 24, 28, 32, 36, 40, 44, 48}


def test_a_phase_shorter_than_a_batch_has_one_step():
    plan = plan_run([FIRST, replace(SECOND, until_tokens=4001, batch_tokens_end=200)])
    assert plan.phase_steps == (0, 40, 41)


def test_weights_move_linearly_and_a_group_may_come_and_go():
    assert weights_at(FIRST, 0.25) == pytest.approx({"a": 0.7, "b": 0.3})
    moving = replace(FIRST, weights_start={"a": 1.0}, weights_end={"b": 1.0})
    assert weights_at(moving, 0.25) == pytest.approx({"a": 0.75, "b": 0.25})
    plan = plan_run([FIRST, SECOND])
    assert plan.weights(0) == pytest.approx({"a": 0.795, "b": 0.205})  # in the step's middle
    assert plan.weights(39) == pytest.approx({"a": 0.405, "b": 0.595})
    assert [is_changing(phase) for phase in (FIRST, SECOND)] == [True, True]
    assert not is_changing(replace(SECOND, batch_tokens_end=200))


def test_a_plan_in_which_nothing_changes_can_be_moved():
    constant = replace(SECOND, batch_tokens_end=200)
    plan = plan_run([constant]).moved(3, 17)
    assert plan.step(3).first_sequence == 17
    assert plan.step(4) == (0, 20, 27, 10, 540)
    assert (np.diff(plan.tokens) > 0).all()
    for phases in ([FIRST], [SECOND], [constant, replace(constant, until_tokens=20_000)]):
        with pytest.raises(ValueError, match="nothing changes"):
            plan_run(phases).moved(3, 17)


WRONG = {
    "until_tokens": (
        [FIRST, replace(SECOND, until_tokens=4000)],
        "phases.2.until_tokens",
        "is 4,000; phase 'second' begins at 4,000 tokens: more is needed",
    ),
    "shorter than a batch": (
        [FIRST, replace(SECOND, until_tokens=FIRST.until_tokens + 50)],
        "phases.2.until_tokens",
        f"is 4,050; phase 'second' has 50 tokens, less than its first batch of "
        f"{SECOND.batch_tokens:,}",
    ),
    "seq_len": ([replace(FIRST, seq_len=0)], "phases.1.seq_len", "is 0; at least 1 is needed"),
    "a length that cells cannot be cut into": (
        [FIRST, replace(SECOND, seq_len=25)],
        "phases.1.seq_len",
        "is 10; a divisor of the longest, 25, is needed",
    ),
    "batch": (
        [replace(FIRST, batch_tokens=104)],
        "phases.1.global_batch_tokens",
        "is 104; a multiple of seq_len 10 is needed, such as 100 or 110",
    ),
    "no batch": (
        [replace(FIRST, batch_tokens_end=-10)],
        "phases.1.global_batch_tokens_end",
        "is -10; a multiple of seq_len 10 is needed, such as 10",
    ),
    "sum": (
        [replace(FIRST, weights_end={"a": 0.4, "b": 0.5})],
        "phases.1.weights_end",
        "sums to 0.9; 1 is needed",
    ),
    "negative": (
        [replace(FIRST, weights_start={"a": 1.5, "b": -0.5})],
        "phases.1.weights_start",
        "gives 'b' -0.5; at least 0 is needed",
    ),
    "nan": (
        [replace(FIRST, weights_start={"a": 1.0, "b": float("nan")})],
        "phases.1.weights_start",
        "gives 'b' nan; at least 0 is needed",
    ),
    "group": (
        [replace(FIRST, weights_start={"c": 1.0})],
        "phases.1.weights_start",
        "names the group 'c'; the groups of the sources are a, b",
    ),
    "over the cap": (
        [FIRST],
        "phases.1.weights_end",
        "gives 'b' 0.6; the cap of 0.5 allows 0.50000, 512 of 1024 sequences",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_planned_is_named(name: str):
    phases, field, message = WRONG[name]
    caps = {"b": 0.5} if name == "over the cap" else {}
    assert find_problems(phases, GROUPS, caps) == [(field, message)]


def test_a_run_that_no_memory_holds_is_a_problem():
    long = replace(FIRST, until_tokens=10**9 + 100)
    assert find_problems([long], GROUPS, {}) == [
        (
            "phases.1.until_tokens",
            "is 1,000,000,100; with batches of 100 tokens that is step 10,000,001: at most "
            "10,000,000 steps are allowed",
        )
    ]
    assert not find_problems([replace(FIRST, until_tokens=10**9)], GROUPS, {})
    endless = replace(FIRST, until_tokens=10**15 + 1, batch_tokens=10**9, batch_tokens_end=10**9)
    assert find_problems([endless], GROUPS, {}) == [
        (
            "phases.1.until_tokens",
            "is 1,000,000,000,000,001; at most 1,000,000,000,000,000 is allowed",
        )
    ]


def test_a_batch_that_its_phase_does_not_hold_is_a_problem():
    ((field, message),) = find_problems([replace(FIRST, batch_tokens_end=4010)], GROUPS, {})
    assert field == "phases.1.global_batch_tokens_end"
    assert message == "is 4,010; phase 'first' has 4,000 tokens: at most that is allowed"
    assert not find_problems([replace(FIRST, batch_tokens_end=4000)], GROUPS, {})


def test_caps_are_checked_and_hold_in_whole_sequences():
    assert not find_problems([FIRST, SECOND], GROUPS, {"b": 0.61})
    ((field, message),) = find_problems([SECOND], GROUPS, {"c": 0.5})
    assert (field, message) == ("caps", "names 'c'; the groups are a, b")
    ((_, message),) = find_problems([SECOND], GROUPS, {"b": 1.5})
    assert message == "gives 'b' 1.5; above 0 to 1 is allowed"
    for cap in (float("nan"), float("inf")):
        ((_, message),) = find_problems([SECOND], GROUPS, {"b": cap})
        assert message == f"gives 'b' {cap}; above 0 to 1 is allowed"
    # 10% of 1024 are 102.4 sequences: a share of 0.1 would give 103 now and then.
    tenth = replace(SECOND, weights_start={"a": 0.9, "b": 0.1}, weights_end={"a": 0.9, "b": 0.1})
    (problem, _) = find_problems([tenth], GROUPS, {"b": 0.1})
    assert problem.message.startswith("gives 'b' 0.1; the cap of 0.1 allows 0.09961, 102 of 1024")
    with_multiple = find_problems([SECOND], GROUPS, {}, batch_multiple=3)
    assert "of 60 (seq_len x batch_multiple) is needed, such as 180 or 240" in with_multiple[0][1]
