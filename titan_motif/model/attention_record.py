"""What attention did in the training passes of a step, kept on the device until somebody asks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from titan_motif.kernels import AttentionStatistics


class AttentionRecord(nn.Module):
    """Maxima over the micro-batches of a step, in one buffer, so that one reduction serves.

    A row is a layer: the largest logit of every query head, the norm of the noise maps over the
    signal maps', and lambda. -inf is where nothing was seen: before the first pass, and in the
    columns of other tensor-parallel ranks' heads.
    """

    def __init__(self, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.first_head = 0
        """Of those that this rank computes."""
        self.seen_heads: slice | None = None
        """Those of which a pass was recorded."""
        self.is_recording = False
        """Whether training passes are to be recorded: attention by SDPA then has more to do."""
        self.exact_above = -math.inf
        """Largest logits at or under it may be told too high, by at most log(seq)."""
        maxima = torch.empty(num_layers, num_heads + 2, dtype=torch.float32)
        self.register_buffer("maxima", maxima, persistent=False)

    def reset(self) -> None:
        """Forget what was seen."""
        self.maxima.fill_(-math.inf)
        self.seen_heads = None

    @torch.no_grad()
    def add(self, layers: Sequence[AttentionStatistics], lam: Tensor) -> None:
        """Take in one pass.

        Shapes: lam (layers,)
        """
        logits = torch.stack([layer.max_logits for layer in layers])
        self.seen_heads = heads = slice(self.first_head, self.first_head + logits.shape[1])
        ratios = torch.stack([layer.noise_over_signal for layer in layers])
        for columns, seen in ((heads, logits), (-2, ratios), (-1, lam.detach())):
            here = self.maxima[:, columns]
            torch.maximum(here, seen, out=here)
