"""Whether a loss is far above those before it, on the device."""

import json
from typing import Any

import torch
from torch import Tensor


class LossWindow:
    """The losses of the last steps that were applied, and how far above them a new one is.

    Equation: z = (loss - mean) / standard deviation, over the window (Bessel's correction); a loss
              is a spike if z is above the bound. Before the window is full none is, nor where all
              of its losses are equal.

    Args:
        size:    losses, 2 at least
        z_score: the bound
    """

    def __init__(self, size: int, z_score: float, device: torch.device) -> None:
        self.size, self.z_score = size, z_score
        self.losses = torch.zeros(size, device=device)
        """The newest last."""
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        """Losses that were kept since the window was emptied."""

    def spike(self, loss: Tensor) -> Tensor:
        """Return z if a loss is a spike, else 0.0.

        Shapes: loss () -> ()
        """
        z = (loss - self.losses.mean()) / self.losses.std()
        is_spike = (z > self.z_score) & z.isfinite() & (self.count >= self.size)
        return torch.where(is_spike, z, 0.0)

    def keep(self, loss: Tensor, is_applied: Tensor) -> None:
        """Take a loss into the window, if its step is applied.

        Shapes: loss (), is_applied () bool
        """
        moved = torch.cat((self.losses[1:], loss.reshape(1)))
        self.losses = torch.where(is_applied, moved, self.losses)
        self.count = self.count + is_applied

    def empty(self) -> None:
        """Begin anew, as where other data or another length make other losses."""
        self.count = torch.zeros_like(self.count)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses, the newest last, as a text: a window of another size can take it."""
        count = min(int(self.count), self.size)
        return {"losses": json.dumps(self.losses[self.size - count :].tolist())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the last losses of a window."""
        losses = json.loads(state["losses"])[-self.size :]
        self.losses[self.size - len(losses) :] = torch.tensor(losses)
        self.count.fill_(len(losses))
