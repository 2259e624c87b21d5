"""The learning rate over tokens: torchtitan's values at a constant batch, and what steps cannot."""

import math
from dataclasses import asdict

import pytest
import torch

import titan_motif.device  # noqa: F401

# isort: split
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config.job_config import LRScheduler

from titan_motif.components.lr_schedule import TokenScheduler, WarmupStableDecay, build_schedule

BATCH = 3 * 128


def optimizers(lr: float | torch.Tensor = 4e-3) -> OptimizersContainer:
    return OptimizersContainer([torch.nn.Linear(2, 1)], torch.optim.AdamW, {"lr": lr})


def rates(container) -> list[float]:
    return [float(group["lr"]) for o in container for group in o.param_groups]


SECTIONS = {
    "no warm-up": LRScheduler(warmup_steps=0),
    "linear": LRScheduler(warmup_steps=5),
    "stable": LRScheduler(warmup_steps=7, decay_ratio=0.3, min_lr_factor=0.1),
    "cosine": LRScheduler(warmup_steps=3, decay_ratio=0.5, decay_type="cosine", min_lr_factor=0.05),
    "sqrt": LRScheduler(warmup_steps=1, decay_ratio=0.37, decay_type="sqrt", min_lr_factor=0.25),
    "no decay": LRScheduler(warmup_steps=4, decay_ratio=0.0),
    "nothing but decay": LRScheduler(warmup_steps=0, decay_ratio=1.0, decay_type="sqrt"),
    "nothing stable": LRScheduler(warmup_steps=20, decay_ratio=0.5, decay_type="cosine"),
    "decay cut": LRScheduler(warmup_steps=30, decay_ratio=0.5),
    "warm-up cut": LRScheduler(warmup_steps=70),
    "longer than the run": LRScheduler(warmup_steps=5, total_steps=90, decay_ratio=0.6),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_with_a_constant_batch_every_step_has_torchtitans_learning_rate(name: str):
    steps, section = 40, SECTIONS[name]
    theirs, ours = optimizers(), optimizers()
    stock = build_lr_schedulers(theirs, section, steps)
    schedule = build_schedule(
        training_steps=steps, tokens_at=lambda n: n * BATCH, **asdict(section)
    )
    scheduler = TokenScheduler(ours, schedule, BATCH)
    seen = set()
    for step in range(steps + 1):  # the last one is never done
        if step:
            scheduler.step()
            stock.step()
        assert rates(ours) == rates(theirs)
        assert scheduler.schedulers[0].get_last_lr() == stock.schedulers[0].get_last_lr()
        seen.add(rates(ours)[0])
        for optimizer in theirs:
            optimizer.step()
    assert len(seen) > 3
    assert scheduler.tokens_seen == steps * BATCH


# the factor after a quarter, half, and all of the decay, down to a half
HALVED = {
    "linear": (0.875, 0.75, 0.5),
    "cosine": (0.5 + 0.25 * (1 + math.sqrt(0.5)), 0.75, 0.5),
    "sqrt": (0.75, 1 - math.sqrt(0.125), 0.5),
    "inverse_sqrt": (1 / math.sqrt(1.75), 1 / math.sqrt(2.5), 0.5),
}


@pytest.mark.parametrize("decay_type", HALVED)
def test_decay_follows_its_formula_and_stays_at_the_floor(decay_type: str):
    schedule = WarmupStableDecay(100, 400, 1000, decay_type, 0.5)
    assert schedule.factor(599, 600) == schedule.factor(600, 700) == 1.0
    found = [schedule.factor(tokens, tokens + 1) for tokens in (700, 800, 1000)]
    assert found == pytest.approx(HALVED[decay_type], abs=1e-15)
    assert schedule.factor(1001, 1002) == schedule.factor(10**12, 10**12 + 1) == found[-1]


def test_inverse_sqrt_after_a_warm_up_alone_is_that_of_t5():
    schedule = WarmupStableDecay(1000, 15_000, 16_000, "inverse_sqrt", 0.25)
    for tokens in (1000, 1001, 4000, 9000, 16_000):
        assert schedule.factor(tokens, tokens) == pytest.approx(math.sqrt(1000 / tokens), rel=1e-14)
    with pytest.raises(ValueError, match="min_lr_factor above 0"):
        WarmupStableDecay(0, 10, 10, "inverse_sqrt")


def test_a_step_has_the_largest_factor_on_its_way():
    schedule = WarmupStableDecay(100, 100, 200)
    assert schedule.factor(0, 0) == 0.0
    assert schedule.factor(0, 30) == 0.3
    assert schedule.factor(90, 150) == 1.0  # over the peak
    assert schedule.factor(150, 180) == 0.5
    assert WarmupStableDecay(0, 0, 200).factor(0, 1) == 1.0
    assert WarmupStableDecay(0, 0, 200).factor(500, 600) == 1.0
    assert WarmupStableDecay(0, 200, 200).factor(0, 30) == 1.0
    assert WarmupStableDecay(0, 200, 200).factor(50, 80) == 0.75


def test_steps_of_a_growing_batch_stand_for_their_own_tokens():
    schedule = build_schedule(
        training_steps=10, tokens_at=lambda n: n * n, warmup_steps=3, decay_ratio=0.4
    )
    assert schedule == WarmupStableDecay(9, 100 - 36, 100)


def test_tokens_take_the_place_of_steps(caplog):
    settings = {"training_steps": 100, "warmup_steps": 20, "decay_ratio": 0.3}
    settings |= {"tokens_at": lambda steps: 10 * steps}
    assert build_schedule(**settings) == WarmupStableDecay(200, 300, 1000)
    given = build_schedule(**settings, warmup_tokens=55, decay_tokens=444)
    assert given == WarmupStableDecay(55, 444, 1000)
    none = build_schedule(**settings, warmup_tokens=0, decay_tokens=0)
    assert none == WarmupStableDecay(0, 0, 1000)
    assert not caplog.records
    cut = build_schedule(**settings, warmup_tokens=900, decay_tokens=444)
    assert cut == WarmupStableDecay(900, 100, 1000)
    assert build_schedule(**settings, warmup_tokens=1001) == WarmupStableDecay(1000, 0, 1000)
    assert [record.getMessage() for record in caplog.records] == [
        "the decay of 444 tokens is cut to the 100 after the warm-up",
        "the warm-up of 1,001 tokens is cut to the schedule's 1,000",
        "the decay of 300 tokens is cut to the 0 after the warm-up",
    ]


def test_a_resumed_schedule_goes_by_tokens_whatever_the_batch():
    schedule = WarmupStableDecay(1000, 2000, 4000, "cosine", 0.1)
    before = TokenScheduler(optimizers(1.0), schedule, 250)
    for _ in range(10):
        before.step()
    state = before.state_dict()
    assert state == {"tokens_seen": 2500}

    after = TokenScheduler(optimizers(1.0), schedule, 100)
    after.load_state_dict(state)
    assert after.get_last_lr() == before.get_last_lr() == [schedule.factor(2500, 2600)]
    for _ in range(5):
        after.step()
    for _ in range(2):
        before.step()
    assert after.tokens_seen == before.tokens_seen == 3000
    assert after.get_last_lr() == before.get_last_lr() == pytest.approx([0.55], abs=1e-15)
    # a batch that grows on the way
    after.begin_step(400)
    after.step()
    assert after.tokens_seen == 3400


def test_the_learning_rate_is_the_jobs_not_the_checkpoints():
    schedule = WarmupStableDecay(0, 1000, 1000)
    saved = optimizers(0.4)
    scheduler = TokenScheduler(saved, schedule, 100)
    for _ in range(5):
        scheduler.step()
    assert rates(saved) == [0.2]

    resumed = optimizers(0.8)
    scheduler_of_resumed = TokenScheduler(resumed, schedule, 100)
    scheduler_of_resumed.load_state_dict(scheduler.state_dict())
    (optimizer,) = resumed
    optimizer.load_state_dict(saved.optimizers[0].state_dict())  # brings its learning rate along
    assert rates(resumed) == [0.2]
    scheduler_of_resumed.begin_step(100)
    assert rates(resumed) == scheduler_of_resumed.get_last_lr() == [0.4]


def test_every_group_of_every_optimizer_keeps_its_own_learning_rate_and_its_tensor():
    matrix, vector, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    tensor = torch.tensor(0.5, dtype=torch.float64)
    groups = [{"params": [matrix], "lr": 0.02}, {"params": [vector], "lr": tensor}]
    both = [torch.optim.SGD(groups), torch.optim.SGD([other], lr=8.0)]
    scheduler = TokenScheduler(both, WarmupStableDecay(400, 0, 1000), 100)
    assert rates(both) == [0.005, 0.125, 2.0]
    scheduler.step()
    assert rates(both) == [0.01, 0.25, 4.0]
    assert both[0].param_groups[1]["lr"] is tensor
    assert scheduler.get_last_lr() == [0.01, 0.25]


def test_a_compiled_step_follows_the_schedule():
    """A learning rate in a tensor is read by every step, and compiles it once."""
    from torch._dynamo.testing import CompileCounter

    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=torch.tensor(1.0), foreach=True)
    scheduler = TokenScheduler([optimizer], WarmupStableDecay(400, 0, 1000), 100)
    weight.grad = torch.ones(1)
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    for _ in range(4):
        step()
        scheduler.step()
    assert weight.item() == -(0.25 + 0.5 + 0.75 + 1.0)
    assert counter.frame_count == 1
