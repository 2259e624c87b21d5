"""The learning rate over the tokens seen by all ranks together: warm-up, a stable part, decay.

torchtitan's schedulers count steps, so that another batch size is another schedule. Here the tokens
decide. With a constant batch every step's learning rate is the one of torchtitan's schedulers, bit
for bit; beyond the end of the schedule, where torchtitan's would fall below the floor, it is kept.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import Optimizer
from torchtitan.tools.logging import logger

DecayType = Literal["linear", "cosine", "sqrt", "inverse_sqrt"]


@dataclass(frozen=True)
class WarmupStableDecay:
    """A schedule of T tokens: the factor, from 0 to 1, by which each learning rate is multiplied.

    Equation: f(t) = min(t / W, d(p)),  p = (t - (T - D)) / D, not below 0 and not above 1
              linear        d(p) = m + (1 - m) (1 - p)
              cosine        d(p) = m + (1 - m) (1 + cos(pi p)) / 2
              sqrt          d(p) = m + (1 - m) (1 - sqrt(p))   (https://arxiv.org/abs/2405.18392)
              inverse_sqrt  d(p) = m / sqrt(m^2 + p (1 - m^2)) (https://arxiv.org/abs/1910.10683)
              t tokens seen, W warmup_tokens, D decay_tokens, T total_tokens, m min_factor
    Raises:   ValueError for inverse_sqrt with m = 0, which would be 0 at once
    Departs:  T5's inverse square root, sqrt(W / t), begins where the warm-up ends and ends at no
              chosen value. This one is moved and stretched, to be 1 where the decay begins and m
              at the end; with D = T - W and W = m^2 T it is T5's.
    """

    warmup_tokens: int
    decay_tokens: int
    total_tokens: int
    decay_type: DecayType = "linear"
    min_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.decay_type == "inverse_sqrt" and not self.min_factor > 0:
            raise ValueError("the decay inverse_sqrt needs a min_lr_factor above 0")

    def __str__(self) -> str:
        begin, end = self.total_tokens - self.decay_tokens, self.total_tokens
        decay = f"{self.decay_type} decay from {begin:,} to {end:,}, to {self.min_factor:g} of it"
        decay = decay if self.decay_tokens else "no decay"
        return f"warm-up over {self.warmup_tokens:,} tokens, {decay}"

    def factor(self, begin: int, end: int) -> float:
        """Return the factor of the step that takes the tokens from `begin` to `end`.

        It is the largest value of f over the step, so that the first and the last step learn too.
        """
        return min(self._warmup(end), self._decay(begin))

    def _warmup(self, tokens: int) -> float:
        return tokens / self.warmup_tokens if tokens < self.warmup_tokens else 1.0

    def _decay(self, tokens: int) -> float:
        past = tokens - (self.total_tokens - self.decay_tokens)
        if past <= 0 or self.decay_tokens == 0:
            return 1.0
        progress, floor = min(past / self.decay_tokens, 1.0), self.min_factor
        if self.decay_type == "inverse_sqrt":
            return floor / math.sqrt(floor**2 + progress * (1 - floor**2))
        shape = {
            "linear": 1 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
            "sqrt": 1 - math.sqrt(progress),
        }[self.decay_type]
        return floor + (1 - floor) * shape


def build_schedule(
    *,
    training_steps: int,
    tokens_at: Callable[[int], int],
    total_steps: int | None = None,
    warmup_steps: int = 0,
    warmup_tokens: int = -1,
    warmup_ratio: float | None = None,
    decay_ratio: float | None = None,
    decay_tokens: int = -1,
    decay_type: DecayType = "linear",
    min_lr_factor: float = 0.0,
) -> WarmupStableDecay:
    """Return the schedule that a job's settings describe; -1 tokens are those of the steps.

    `tokens_at` tells the tokens of a number of steps from the first on.

    A warm-up or a decay that does not fit into the schedule is cut, as torchtitan's are: a trial of
    a few steps wants no other settings than the run.
    """
    steps = training_steps if total_steps is None else total_steps
    total = tokens_at(steps)
    if warmup_ratio is not None:
        warmup_steps = round(steps * warmup_ratio)
    warmup = tokens_at(warmup_steps) if warmup_tokens == -1 else warmup_tokens
    if warmup > total:
        logger.warning(f"the warm-up of {warmup:,} tokens is cut to the schedule's {total:,}")
        warmup = total
    rest = total - warmup
    if decay_tokens != -1:
        decay = decay_tokens
    else:
        stable_steps = steps - round(steps * (decay_ratio or 0.0))
        decay = rest if decay_ratio is None else total - tokens_at(stable_steps)
    if decay > rest:
        logger.warning(f"the decay of {decay:,} tokens is cut to the {rest:,} after the warm-up")
        decay = rest
    return WarmupStableDecay(warmup, decay, total, decay_type, min_lr_factor)


class TokenScheduler(Stateful):
    """Sets the learning rate of every parameter group, in place of an LRSchedulersContainer.

    The factor multiplies the learning rate that a group has when this is built, which is the job's:
    only the tokens come from a checkpoint.

    Args:
        optimizers:  all that the schedule governs, such as torchtitan's OptimizersContainer
        step_tokens: tokens that all ranks take together in a step, unless `begin_step` says other
    """

    def __init__(
        self, optimizers: Iterable[Optimizer], schedule: WarmupStableDecay, step_tokens: int
    ) -> None:
        self.optimizers = list(optimizers)
        self.base_lrs = [[float(g["lr"]) for g in o.param_groups] for o in self.optimizers]
        self.schedule = schedule
        self.tokens_seen = 0
        self.begin_step(step_tokens)

    @property
    def schedulers(self) -> list["TokenScheduler"]:
        """What torchtitan asks for the learning rate that it logs."""
        return [self]

    def get_last_lr(self) -> list[float]:
        """Return the learning rates of the first optimizer's groups in the step that is due."""
        return [base * self._factor for base in self.base_lrs[0]]

    def begin_step(self, step_tokens: int) -> None:
        """Set the learning rates for a step of so many tokens, whatever a checkpoint put there."""
        self.step_tokens = step_tokens
        self._factor = self.schedule.factor(self.tokens_seen, self.tokens_seen + step_tokens)
        for optimizer, base_lrs in zip(self.optimizers, self.base_lrs, strict=True):
            for group, base in zip(optimizer.param_groups, base_lrs, strict=True):
                if isinstance(group["lr"], torch.Tensor):  # a compiled step reads this very tensor
                    group["lr"].fill_(base * self._factor)
                else:
                    group["lr"] = base * self._factor

    def step(self) -> None:
        """Count the tokens of the step that was done; the next one takes as many."""
        self.tokens_seen += self.step_tokens
        self.begin_step(self.step_tokens)

    def state_dict(self) -> dict[str, Any]:
        """Return the tokens seen: all else is the job's."""
        return {"tokens_seen": self.tokens_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the tokens that a checkpoint has seen, on this job's schedule."""
        self.tokens_seen = state_dict["tokens_seen"]
        self.begin_step(self.step_tokens)
