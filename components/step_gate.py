"""Whether a step is applied: one decision of all ranks, before anything is changed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchtitan.tools.logging import logger

from titan_motif.components.loss_window import LossWindow

WATCHED = ("gradient norm", "largest attention logit")
"""Numbers of a step that belong to no parameter, beside the loss."""


class StepRefused(RuntimeError):
    """A run has to end, since its steps cannot be applied; the text is one line."""


class TooManySkippedSteps(StepRefused):
    """Too many steps in a row could not be applied."""


class NotFiniteState(StepRefused):
    """A parameter or the optimizer's state is not finite: no later step mends it."""


class LossSpike(StepRefused):
    """A loss far above those before it, in a run that is to stop there."""


class Numbers(NamedTuple):
    """What a step reads and changes: this rank's parts, an entry for each parameter."""

    gradients: Sequence[Tensor | None]
    parameters: Sequence[Tensor]
    states: Sequence[Sequence[Tensor]]
    """Of the optimizer, as many tensors as there are."""


class Finding(NamedTuple):
    """Why a step was not applied."""

    step: int
    """As `StepGate.begin` was told."""
    spike: float
    """Standard deviations of the loss above those before it, if that is too many; else 0."""
    losses: tuple[tuple[int, int], ...]
    """Data-parallel ranks whose loss is not finite, and the first micro-batch of each, from 0."""
    watched: tuple[str, ...]
    gradients: tuple[str, ...]
    """Names of parameters, as those below."""
    parameters: tuple[str, ...]
    states: tuple[str, ...]

    def __str__(self) -> str:
        if self.spike:
            return f"the loss is {self.spike:.1f} standard deviations above those before it"
        told = []
        if self.parameters or self.states:  # of which all else that is not finite may follow
            return f"not finite: {self._told_names()}"
        if self.losses:
            where = ", ".join(f"rank {r} (micro-batch {m + 1})" for r, m in self.losses[:3])
            told.append(f"the loss of data-parallel {where}{_more(self.losses[3:])}")
        told += [f"the {name}" for name in self.watched]
        told += [self._told_names()] if self.gradients else []
        return f"not finite: {', '.join(told)}"

    def _told_names(self) -> str:
        at_rest = (("values", self.parameters), ("optimizer's state", self.states))
        parts = at_rest if any(names for _, names in at_rest) else (("gradient", self.gradients),)
        return ", ".join(
            f"the {what} of {names[0]}{_more(names[1:])}" for what, names in parts if names
        )


class StepGate:
    """Decides on the device, with one reduction, and tells the host a step later.

    The host does not wait for a step's decision, but for that of the step before: it reads the
    flags when the next step is decided, from a copy that was started when they were known. All
    ranks read the same flags at the same place, so that an error ends all of them.

    What an update is made of is checked, not the update: of finite gradients whose norm is finite,
    parameters and states, Newton-Schulz and AdamW make finite ones.

    Args:
        names:       of the parameters that decisions are made for
        max_skipped: steps in a row that may be skipped; one more raises TooManySkippedSteps
    """

    def __init__(self, names: Sequence[str], device: torch.device, max_skipped: int = 10) -> None:
        self.names, self.device, self.max_skipped = list(names), device, max_skipped
        self.num_skipped, self.num_skipped_in_a_row = 0, 0
        self.step = 0
        self.refused: Tensor | None = None
        """() on the device: 1.0 where the last step changed nothing, else 0.0."""
        self.window: LossWindow | None = None
        """Of losses, if a step is to be skipped, or the run stopped, where one is far above."""
        self.stops_at_spike = False
        self.data_rank, self.data_ranks = 0, 1
        """Whose losses this rank adds, and how many such ranks there are."""
        self.describe: Callable[[Finding], str] = str
        """A finding in words; it may know more than this, such as a step's documents."""
        self._losses: list[Tensor] = []
        self._watched: dict[str, Tensor] = {}
        self._gradient_flags: Tensor | None = None
        self._presence: dict[tuple[bool, ...], Tensor] = {}
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    # ---- a step

    def begin(self, step: int) -> None:
        """Forget what was added; decisions are of this step from here on."""
        self.step = step
        self._losses.clear()
        self._watched.clear()
        self._gradient_flags = None

    def add_loss(self, loss: Tensor) -> None:
        """Take in the loss of this rank's next micro-batch.

        Shapes: loss ()
        """
        self._losses.append(loss.detach().float().to(self.device))

    def watch(self, name: str, values: Tensor) -> None:
        """Take in numbers of the step, none of which may be NaN or infinite; a name of WATCHED."""
        self._watched[name] = values.detach().to(self.device)

    @torch.no_grad()
    def look_at_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Look at this rank's parts before they are clipped, which makes all NaN where one is."""
        self._gradient_flags = self._not_finite(gradients)

    @torch.no_grad()
    def decide(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """Return whether the step is refused, and which gradients exist anywhere: 0.0 or 1.0.

        Shapes: -> (), (parameters,), float32, on the device, the same on all ranks
        Raises: StepRefused, on all ranks alike, if the step before was one too many
        """
        self.settle()
        loss = self._whole_loss() if self.window is not None and self._losses else None
        spike = torch.zeros(1, device=self.device)
        if loss is not None:
            spike = self.window.spike(loss).reshape(1)
        if self._gradient_flags is None:
            self.look_at_gradients(numbers.gradients)
        flags = torch.cat(
            (
                spike,
                self._watched_flags(),
                self._loss_flags(),
                self._gradient_flags,
                *self._at_rest(numbers),
                self._present(numbers.gradients),
            )
        )
        _reduce_(flags, dist.ReduceOp.MAX)
        count = len(self.names)
        self.refused = (flags[:-count] > 0).any().float()
        if loss is not None:
            self.window.keep(loss, self.refused == 0)
        self._remember(flags)
        self.begin(self.step + 1)
        return self.refused, flags[-count:]

    def settle(self) -> None:
        """Take note of the last decision, if that was not done yet.

        Raises: StepRefused, if the run has to end
        """
        if self._pending is None:
            return
        step, flags, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        finding = self._read(step, flags.tolist())
        if finding is None:
            self.num_skipped_in_a_row = 0
            return
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1
        told = self.describe(finding)
        if finding.parameters or finding.states:
            raise NotFiniteState(f"step {step} changed nothing: {told}; no later step mends that")
        if finding.spike and self.stops_at_spike:
            raise LossSpike(f"step {step} changed nothing: {told}")
        if self.num_skipped_in_a_row > self.max_skipped:
            raise TooManySkippedSteps(
                f"{self.num_skipped_in_a_row} steps in a row changed nothing, and "
                f"step_check.max_skipped_steps allows {self.max_skipped}; step {step}: {told}"
            )
        logger.warning(f"step {step} is skipped: {told}")

    @torch.no_grad()
    def check_at_rest(self, numbers: Numbers, what: str) -> None:
        """Check parameters and state between steps, say before a save, and wait for the answer.

        Args:   what: is not done if anything is not finite
        Raises: StepRefused, on all ranks
        """
        self.settle()
        flags = torch.cat(self._at_rest(numbers))
        _reduce_(flags, dist.ReduceOp.MAX)
        parameters, states = self._names_of(flags.reshape(2, -1).tolist())
        if parameters or states:
            finding = Finding(self.step, 0.0, (), (), (), parameters, states)
            raise NotFiniteState(f"{what} is left out: {finding}")

    # ---- flags, this rank's

    def _whole_loss(self) -> Tensor:
        """Return the step's loss, the sum over its micro-batches and data-parallel ranks."""
        total = torch.stack(self._losses).sum()
        _reduce_(total, dist.ReduceOp.SUM)
        # Ranks of tensor parallelism have added the same one.
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        return total * (self.data_ranks / ranks)

    def _watched_flags(self) -> Tensor:
        zero = torch.zeros((), device=self.device)
        found = (self._watched.get(name) for name in WATCHED)
        return torch.stack([zero if f is None else (~f.isfinite()).any().float() for f in found])

    def _loss_flags(self) -> Tensor:
        """Return, of each data-parallel rank, the number of the first bad micro-batch, from 1."""
        flags = torch.zeros(self.data_ranks, device=self.device)
        if self._losses:
            bad = ~torch.stack(self._losses).isfinite()
            flags[self.data_rank] = bad.any() * (bad.int().argmax() + 1)
        return flags

    def _at_rest(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """Return which parameters, and whose states, are not finite."""
        flat = [tensor for state in numbers.states for tensor in state]
        if not flat:
            return self._not_finite(numbers.parameters), torch.zeros(
                len(self.names), device=self.device
            )
        longest = max(map(len, numbers.states))
        # As many columns as the longest state has, so that one reduction serves all.
        padded = [[*state, *[None] * (longest - len(state))] for state in numbers.states]
        flags = self._not_finite([tensor for state in padded for tensor in state])
        return self._not_finite(numbers.parameters), flags.reshape(-1, longest).amax(1)

    def _not_finite(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return 1.0 for each tensor with a NaN or an infinity, else 0.0."""
        places = [i for i, t in enumerate(tensors) if t is not None and t.numel()]
        largest = [torch.zeros((), device=self.device)] * len(tensors)
        if places:
            # The largest magnitude: infinite or NaN where any is.
            norms = torch._foreach_norm([tensors[i] for i in places], torch.inf)
            for place, norm in zip(places, norms, strict=True):
                largest[place] = norm.float()
        return 1.0 - torch.stack(largest).isfinite().float()

    def _present(self, gradients: Sequence[Tensor | None]) -> Tensor:
        key = tuple(gradient is not None for gradient in gradients)
        if key not in self._presence:  # nearly always the same: no copy to the device each step
            self._presence = {key: torch.tensor(key, dtype=torch.float32, device=self.device)}
        return self._presence[key]

    # ---- what the host is told

    def _remember(self, flags: Tensor) -> None:
        if not flags.is_cuda:
            self._pending = self.step, flags.clone(), None
            return
        copy = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        copy.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = self.step, copy, event

    def _read(self, step: int, flags: list[float]) -> Finding | None:
        """Return what a decision's flags say, None if the step was applied."""
        count, begin = len(self.names), 1 + len(WATCHED)
        losses = flags[begin : begin + self.data_ranks]
        rows = [flags[i : i + count] for i in range(begin + self.data_ranks, len(flags), count)]
        gradients, parameters, states = self._names_of(rows[:3])
        watched = tuple(name for name, bad in zip(WATCHED, flags[1:begin], strict=True) if bad)
        bad_losses = tuple((rank, int(n) - 1) for rank, n in enumerate(losses) if n)
        if not (gradients or parameters or states or watched or bad_losses or flags[0]):
            return None
        return Finding(step, flags[0], bad_losses, watched, gradients, parameters, states)

    def _names_of(self, rows: Sequence[Sequence[float]]) -> list[tuple[str, ...]]:
        named = (zip(self.names, row, strict=True) for row in rows)
        return [tuple(name for name, bad in row if bad) for row in named]


def _reduce_(values: Tensor, operator: dist.ReduceOp) -> None:
    """Reduce over all ranks, in place."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values, operator)


def _more(others: Sequence[object]) -> str:
    return f" and {len(others)} more" if others else ""
