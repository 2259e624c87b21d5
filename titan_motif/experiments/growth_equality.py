"""Whether a grown model, run as a whole on held-out text, is the small one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from titan_motif.components.curriculum.sources import TokenFile
from titan_motif.evaluation.loading import load_model

BATCH = 16
DTYPES = (torch.float64, torch.float32)


@torch.no_grad()
def compare_on_text(
    small: Path, grown: Path, splits: Sequence[Path], *, num_sequences: int, length: int
) -> dict[str, Any]:
    """Return how far logits are apart at most, and both models' losses, by dtype.

    On the CPU, where float64 is like any other dtype.

    Args:
        splits:        folders of held-out tokens, of each the first `num_sequences` are read
        num_sequences: at most
    """
    found = {}
    for dtype in DTYPES:
        models = [load_model(path, dtype=dtype) for path in (small, grown)]
        apart = largest = 0.0
        losses, num = [0.0, 0.0], 0
        for tokens in _batches(splits, num_sequences, length):
            inputs, labels = tokens[:, :-1], tokens[:, 1:]
            then, now = (model(inputs) for model in models)
            apart = max(apart, float((now - then).abs().max()))
            largest = max(largest, float(then.abs().max()))
            for place, logits in enumerate((then, now)):
                loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
                losses[place] += float(loss) * labels.numel()
            num += labels.numel()
        found[str(dtype).removeprefix("torch.")] = {
            "largest_difference": apart,
            "largest_logit": largest,
            "loss_before": losses[0] / num,
            "loss_after": losses[1] / num,
            "tokens": num,
        }
    return found


def _batches(splits: Sequence[Path], num_sequences: int, length: int) -> Iterator[Tensor]:
    """Yield tokens (batch, length + 1)."""
    for split in splits:
        tokens = TokenFile(split, length + 1).tokens
        num = min(num_sequences, len(tokens) // (length + 1))
        read = tokens[: num * (length + 1)].astype("int64")
        yield from torch.from_numpy(read).view(num, length + 1).split(BATCH)
