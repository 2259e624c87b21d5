"""The loss of a model on conversations, one by one: how likely it finds what the assistant says."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from titan_motif.components.sft.template import Sample
from titan_motif.model import Motif2Model

_WINDOW = 1024
"""Samples that are sorted by their length at once."""
_CHUNK_TOKENS = 512
"""Whose logits are in float32 at once."""


def conversation_losses(
    model: Motif2Model, samples: Iterable[Sample], batch_tokens: int
) -> Iterator[float | None]:
    """Yield the mean loss of each sample's learnt tokens in nats, None where it has none.

    Samples of similar lengths run together, padded to at most so many tokens; a longer sample is
    judged by its first `batch_tokens`. Order and window follow from the samples alone.
    """
    remaining = iter(samples)
    while window := list(islice(remaining, _WINDOW)):
        lengths = [min(len(sample.tokens), batch_tokens) for sample in window]
        losses: list[float | None] = [None] * len(window)
        for batch in _batches(lengths, batch_tokens):
            found = _losses(model, [window[index] for index in batch], batch_tokens)
            for index, loss in zip(batch, found, strict=True):
                losses[index] = loss
        yield from losses


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of samples, longest first, whose padded size is within a batch."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def _losses(model: Motif2Model, samples: Sequence[Sample], max_tokens: int) -> list[float | None]:
    device = model.norm.weight.device
    longest = max(min(len(sample.tokens), max_tokens) for sample in samples)
    tokens = torch.zeros(len(samples), longest, dtype=torch.int64)
    is_learnt = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, sample in enumerate(samples):  # what follows a token does not change its loss
        length = min(len(sample.tokens), longest)
        tokens[row, :length] = torch.from_numpy(sample.tokens[:length])
        is_learnt[row, :length] = torch.from_numpy(sample.is_learnt[:length])
    is_learnt[:, 0] = False  # nothing predicts it
    if not is_learnt.any():
        return [None] * len(samples)
    tokens = tokens.to(device)
    rows, columns = (index.to(device) for index in is_learnt.nonzero(as_tuple=True))
    nats = _nats(model(tokens), tokens, rows, columns).double().cpu()
    sums = torch.zeros(len(samples), dtype=torch.float64)
    sums.index_add_(0, rows.cpu(), nats)  # on a GPU, in any order
    counts = is_learnt.sum(dim=1).tolist()
    return [
        total / count if count else None for total, count in zip(sums.tolist(), counts, strict=True)
    ]


def _nats(logits: Tensor, tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return what the tokens at some positions cost, from the logits of those before."""
    parts = zip(rows.split(_CHUNK_TOKENS), columns.split(_CHUNK_TOKENS), strict=True)
    return torch.cat(
        [
            F.cross_entropy(logits[row, column - 1].float(), tokens[row, column], reduction="none")
            for row, column in parts
        ]
    )
