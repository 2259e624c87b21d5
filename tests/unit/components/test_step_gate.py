"""Which steps are applied, what is told of the others, and when a run has to end."""

import math

import pytest
import torch

from titan_motif.components.loss_window import LossWindow
from titan_motif.components.step_gate import (
    LossSpike,
    NotFiniteState,
    Numbers,
    StepGate,
    TooManySkippedSteps,
)

CPU = torch.device("cpu")
BAD = (math.nan, math.inf, -math.inf)


def numbers(spoil: dict[str, float] | None = None) -> Numbers:
    """Two parameters, of which the second has no gradient and two tensors of state."""
    parts = {name: torch.ones(3) for name in ("gradient", "a", "b", "m", "exp_avg", "step")}
    for name, value in (spoil or {}).items():
        parts[name][1] = value
    return Numbers(
        [parts["gradient"], None], [parts["a"], parts["b"]], [[parts["m"]], [parts["exp_avg"]]]
    )


def gate(**options) -> StepGate:
    made = StepGate(["a", "b"], CPU, **options)
    made.begin(7)
    return made


def test_finite_numbers_are_applied_and_gradients_that_exist_are_told():
    found = gate()
    found.add_loss(torch.tensor(2.0))
    found.watch("gradient norm", torch.tensor(3.0))
    refused, present = found.decide(numbers())
    assert refused.item() == 0
    assert present.tolist() == [1.0, 0.0]
    found.settle()
    assert (found.num_skipped, found.num_skipped_in_a_row) == (0, 0)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ({"gradient": 0}, "the gradient of a"),
        ({"loss": 0}, "the loss of data-parallel rank 2 (micro-batch 2)"),
        ({"gradient norm": 0}, "the gradient norm"),
        ({"largest attention logit": 0}, "the largest attention logit"),
    ],
)
def test_a_number_that_is_not_finite_skips_the_step_and_is_named(spoil, told, value, caplog):
    found = gate()
    found.data_rank, found.data_ranks = 2, 3
    for name in ("fine", "loss"):
        found.add_loss(torch.tensor(value if name in spoil else 1.0))
    for name in ("gradient norm", "largest attention logit"):
        found.watch(name, torch.tensor([1.0, value if name in spoil else 1.0]))
    refused, _ = found.decide(numbers({name: value for name in spoil if name == "gradient"}))
    assert refused.item() == 1
    with caplog.at_level("WARNING"):
        found.settle()
    assert caplog.messages == [f"step 7 is skipped: not finite: {told}"]
    assert (found.num_skipped, found.num_skipped_in_a_row) == (1, 1)
    assert found.decide(numbers())[0].item() == 0  # what was added was of the last step alone
    found.settle()
    assert (found.num_skipped, found.num_skipped_in_a_row) == (1, 0)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("part", "told"), [("b", "the values of b"), ("exp_avg", "the optimizer's state of b")]
)
def test_a_parameter_or_a_state_that_is_not_finite_ends_the_run(part, told, value):
    found = gate()
    assert found.decide(numbers({part: value}))[0].item() == 1
    with pytest.raises(NotFiniteState, match=f"^step 7 changed nothing: not finite: {told}; no la"):
        found.decide(numbers())


def test_what_is_about_to_be_saved_is_checked_at_once():
    found = gate()
    found.check_at_rest(numbers({"gradient": math.nan}), "saving step 7")
    with pytest.raises(NotFiniteState, match=r"^saving step 7 is left out: not finite: the values"):
        found.check_at_rest(numbers({"a": math.inf}), "saving step 7")


def test_the_step_after_too_many_that_were_skipped_ends_the_run():
    found = gate(max_skipped=1)
    bad = {"gradient": math.nan}
    for spoil in (bad, None, bad, bad):
        found.decide(numbers(spoil))
    message = "2 steps in a row changed nothing, and step_check.max_skipped_steps allows 1; step 10"
    with pytest.raises(TooManySkippedSteps, match=f"^{message}: not finite: the gradient of a$"):
        found.decide(numbers())


def test_many_are_counted():
    found = StepGate([f"p{i}" for i in range(5)], CPU)
    found.decide(
        Numbers([torch.tensor([math.nan])] * 5, [torch.ones(1)] * 5, [[] for _ in range(5)])
    )
    told = []
    found.describe = lambda finding: told.append(str(finding)) or ""
    found.settle()
    assert told == ["not finite: the gradient of p0 and 4 more"]


# ---- spikes


def with_window(stops: bool = False) -> StepGate:
    found = gate()
    found.window, found.stops_at_spike = LossWindow(4, 3.0, CPU), stops
    return found


def step(found: StepGate, *losses: float) -> float:
    for loss in losses:
        found.add_loss(torch.tensor(loss))
    return found.decide(numbers())[0].item()


def test_a_loss_far_above_a_full_window_is_left_out_of_it_and_skipped(caplog):
    found = with_window()
    # Until four are there nothing is a spike. Mean 2.5, standard deviation 1.2910: the bound is
    # 6.373. A step's loss is the sum over its micro-batches.
    assert [step(found, loss) for loss in (1.0, 2.0, 3.0, 4.0)] == [0, 0, 0, 0]
    assert step(found, 3.0, 3.38) == 1
    assert step(found, 3.0, 3.37) == 0
    assert found.window.losses.tolist() == pytest.approx([2.0, 3.0, 4.0, 6.37])
    with caplog.at_level("WARNING"):
        found.settle()
    assert step(found, math.inf) == 1  # and no spike
    with caplog.at_level("WARNING"):
        found.settle()
    assert [m.partition("skipped: ")[2] for m in caplog.messages] == [
        "the loss is 3.0 standard deviations above those before it",
        "not finite: the loss of data-parallel rank 0 (micro-batch 1)",
    ]
    assert found.window.count.item() == 5


def test_a_spike_is_named_or_ends_the_run():
    found = with_window(stops=True)
    for loss in (1.0, 2.0, 3.0, 4.0, 7.0):
        step(found, loss)
    with pytest.raises(LossSpike, match=r"^step 11 changed nothing: the loss is 3\.5 standard"):
        found.settle()


def test_a_window_is_emptied_and_goes_on_from_what_was_saved():
    window, other = LossWindow(4, 3.0, CPU), LossWindow(4, 3.0, CPU)
    for loss in (9.0, 1.0, 2.0, 3.0, 4.0):
        window.keep(torch.tensor(loss), torch.tensor(True))
    assert window.state_dict() == {"losses": "[1.0, 2.0, 3.0, 4.0]"}
    other.load_state_dict(window.state_dict())
    assert other.spike(torch.tensor(6.38)) == window.spike(torch.tensor(6.38))  # bit for bit
    assert window.spike(torch.tensor(6.38)).item() == pytest.approx(3.0054, abs=1e-4)
    assert window.spike(torch.tensor(6.36)) == 0
    shorter = LossWindow(2, 3.0, CPU)
    shorter.load_state_dict(window.state_dict())
    assert shorter.losses.tolist() == [3.0, 4.0]
    assert shorter.count.item() == 2
    window.empty()
    assert window.spike(torch.tensor(100.0)) == 0
    assert window.state_dict() == {"losses": "[]"}


def test_equal_losses_have_no_spike():
    window = LossWindow(2, 3.0, CPU)
    for _ in range(2):
        window.keep(torch.tensor(1.0), torch.tensor(True))
    assert window.spike(torch.tensor(2.0)) == 0


def test_a_gradient_is_named_by_what_it_was_before_it_was_clipped(caplog):
    """One NaN makes the norm NaN, and that every gradient."""
    found = StepGate(["a", "b"], CPU)
    found.begin(3)
    found.look_at_gradients([torch.ones(2), torch.tensor([math.nan])])
    all_bad = [torch.full((2,), math.nan), torch.tensor([math.nan])]
    assert found.decide(Numbers(all_bad, [torch.ones(2)] * 2, [[], []]))[0].item() == 1
    with caplog.at_level("WARNING"):
        found.settle()
    assert caplog.messages == ["step 3 is skipped: not finite: the gradient of b"]
    found.decide(Numbers(all_bad, [torch.ones(2)] * 2, [[], []]))  # looked at anew
    with caplog.at_level("WARNING"):
        found.settle()
    assert caplog.messages[1].endswith("the gradient of a and 1 more")
