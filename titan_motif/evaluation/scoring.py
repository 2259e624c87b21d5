"""How likely a model holds given continuations of given contexts."""

import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from titan_motif.model import Motif2Model

PROJECTED_TOKENS = 1024
"""Positions whose logits are held at once: 0.9 GB in float32 for a vocabulary of 219,520."""

Pair = tuple[list[int], list[int]]
"""Tokens of a context, at least one, and of what follows it, at least one."""

T = TypeVar("T")


class Score(NamedTuple):
    """What a model makes of a continuation."""

    log_likelihood: float
    """Natural logarithm of its probability, given the context."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest one."""


@torch.no_grad()
def score(
    model: Motif2Model,
    pairs: Sequence[Pair],
    batch_size: int,
    max_length: int,
    label: str | None = None,
) -> list[Score]:
    """Return the score of every pair, in their order.

    Pairs that need the same pass (choices of one token after the same context) share a row. Rows
    run longest first, so that a batch that is too large fails at once, and are padded on the right,
    which causality hides. Logits are computed of the scored positions alone.

    Args:
        max_length: tokens that the network is given at most; longer ones lose their beginning
        label:      what a bar on a terminal is called; None shows none
    Raises: ValueError, one line, for a pair without tokens, a continuation longer than max_length,
            or ids that the network has not
    """
    _check(pairs, max_length, model.model_args.vocab_size)
    by_row: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        row = tuple([*context, *continuation][-(max_length + 1) : -1])
        by_row.setdefault(row, []).append(number)
    rows = sorted(by_row, key=lambda row: (-len(row), row))
    found: dict[int, Score] = {}
    begins = range(0, len(rows), batch_size)
    for begin in begins if label is None else progress(begins, label):
        batch = rows[begin : begin + batch_size]
        numbers = [(place, number) for place, row in enumerate(batch) for number in by_row[row]]
        continuations = [(place, pairs[number][1]) for place, number in numbers]
        scores = _score_batch(model, batch, continuations)
        found.update(zip((number for _, number in numbers), scores, strict=True))
    return [found[number] for number in range(len(pairs))]


def progress(items: Sequence[T], label: str) -> Iterable[T]:
    """Yield the items, with a bar on the standard error if that is a terminal."""
    is_hidden = not sys.stderr.isatty()
    return track(
        items, label, console=Console(stderr=True), transient=True, disable=is_hidden or not items
    )


def _check(pairs: Sequence[Pair], max_length: int, vocab_size: int) -> None:
    for number, (context, continuation) in enumerate(pairs, start=1):
        if not context or not continuation:
            part = "continuation" if context else "context"
            raise ValueError(f"request {number} has no tokens in its {part}; one is needed")
        if len(continuation) > max_length:
            raise ValueError(
                f"request {number} has a continuation of {len(continuation)} tokens; the network "
                f"is given at most {max_length}"
            )
        largest = max(max(context), max(continuation))
        if largest >= vocab_size:
            raise ValueError(
                f"request {number} has the token {largest}; the network knows {vocab_size}: is "
                "the tokenizer another model's?"
            )


def _score_batch(
    model: Motif2Model,
    rows: Sequence[Sequence[int]],
    continuations: Sequence[tuple[int, list[int]]],  # (row, tokens that the row's end predicts)
) -> list[Score]:
    device = model.norm.weight.device
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    places, positions = [], []
    for place, tokens in continuations:
        places += [place] * len(tokens)
        positions += range(len(rows[place]) - len(tokens), len(rows[place]))
    h = model.hidden_states(padded.to(device))
    h = h[torch.tensor(places, device=device), torch.tensor(positions, device=device)]
    targets = torch.tensor([t for _, tokens in continuations for t in tokens], device=device)
    log_probabilities, is_likeliest = _of_targets(model, h, targets)
    scores, begin = [], 0
    for _, tokens in continuations:
        part = slice(begin, begin + len(tokens))
        likelihood = float(log_probabilities[part].sum())
        scores.append(Score(likelihood, bool(is_likeliest[part].all())))
        begin += len(tokens)
    return scores


def _of_targets(
    model: Motif2Model,
    h: Tensor,  # (positions, dim)
    targets: Tensor,  # (positions,) integers
) -> tuple[Tensor, Tensor]:  # (positions,) float64, (positions,) bool; on the CPU
    """Return the log-probability of each position's target, and whether it is the likeliest."""
    output = model.tok_embeddings if model.output is None else model.output
    found, is_likeliest = [], []
    parts = h.split(PROJECTED_TOKENS), targets.split(PROJECTED_TOKENS)
    for some, wanted in zip(*parts, strict=True):
        logits = F.linear(some, output.weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_probabilities = logits.log_softmax(-1)
        found.append(log_probabilities.gather(1, wanted[:, None])[:, 0].double().cpu())
        is_likeliest.append((logits.argmax(-1) == wanted).cpu())
    return torch.cat(found), torch.cat(is_likeliest)
