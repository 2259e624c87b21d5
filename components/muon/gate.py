"""One decision for all ranks, before anything is changed: are all gradients finite, which exist?"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class TooManySkippedSteps(RuntimeError):
    """Gradients were not finite in too many steps in a row."""


class StepGate:
    """Decides on the device, with one reduction, and tells the host a step later.

    The host never waits for the decision: it reads a step's flag when the next step begins, from a
    copy that was started when the flag was known.

    Args:
        num_parameters: that decisions are made for
        max_skipped:    steps in a row that may be skipped; one more raises TooManySkippedSteps
    """

    def __init__(self, num_parameters: int, device: torch.device, max_skipped: int) -> None:
        self.num_parameters, self.device, self.max_skipped = num_parameters, device, max_skipped
        self.num_skipped, self.num_skipped_in_a_row = 0, 0
        self._presence: dict[tuple[bool, ...], Tensor] = {}
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None

    def decide(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Return whether a gradient anywhere is not finite, and which exist anywhere: 0.0 or 1.0.

        Args:   gradients: this rank's parts, None where it has none
        Shapes: -> (), (num_parameters,), float32, on the device
        Raises: TooManySkippedSteps, on all ranks in the same step: the one after the last too many
        """
        here = [gradient for gradient in gradients if gradient is not None and gradient.numel()]
        bad = torch.zeros((), device=self.device)
        if here:
            # The largest magnitude: infinite or NaN where any is.
            largest = torch.stack([n.float() for n in torch._foreach_norm(here, torch.inf)])
            bad = 1.0 - largest.isfinite().all().float()
        flags = torch.cat((bad.reshape(1), self._present(gradients)))
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        self.settle()
        if self.num_skipped_in_a_row > self.max_skipped:
            raise TooManySkippedSteps(
                f"gradients were not finite in {self.num_skipped_in_a_row} steps in a row; "
                f"optimizer.muon.max_skipped_steps allows {self.max_skipped}"
            )
        self._remember(flags[0])
        return flags[0], flags[1:]

    def settle(self) -> None:
        """Count the last step that was decided, if it is not counted yet."""
        if self._pending is None:
            return
        flag, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        if flag.item() == 0:
            self.num_skipped_in_a_row = 0
            return
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1

    def _present(self, gradients: Sequence[Tensor | None]) -> Tensor:
        key = tuple(gradient is not None for gradient in gradients)
        if key not in self._presence:  # nearly always the same: no copy to the device each step
            self._presence = {key: torch.tensor(key, dtype=torch.float32, device=self.device)}
        return self._presence[key]

    def _remember(self, flag: Tensor) -> None:
        if not flag.is_cuda:
            self._pending = flag.clone(), None
            return
        copy = torch.empty((), dtype=flag.dtype, pin_memory=True)
        copy.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = copy, event
