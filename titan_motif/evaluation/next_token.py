"""What the next token is drawn from: logits, options, and one uniform number a row."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sampling:
    """How a token is chosen; the options act in this order, and the defaults but one do nothing."""

    repetition_penalty: float = 1.0
    """Divide the positive logits of tokens that a text has already, prompt included, by this, and
    multiply the negative ones."""
    temperature: float = 0.8
    """Divide the logits by this; 0 takes the likeliest token."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that have this much of the probability."""
    min_p: float = 0.0
    """Draw from the tokens that are at least so many times as probable as the likeliest one."""
    seed: int = 0
    """The same seed, prompt and number of the sample give the same tokens, in any batch."""

    def check(self) -> None:
        """Raise ValueError, one line, naming the option that is out of its range."""
        for name, is_allowed, allowed in (
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "more than 0"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
        ):
            if not is_allowed:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {getattr(self, name)}; {allowed} is needed")


def token_probabilities(
    logits: Tensor,  # (batch, vocab)
    sampling: Sampling,
    seen: Tensor | None = None,  # (batch, vocab) bool: tokens that the row has already
) -> Tensor:  # (batch, vocab) float64, each row adds up to 1
    """Return the probabilities that the next token of each row is drawn with."""
    logits = logits.double()
    if seen is not None and sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, penalized, logits)
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    # The largest logit at 0, so that a small temperature makes no infinity less infinity.
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        likelier = ordered.cumsum(-1) - ordered  # the probability of all that come before
        is_dropped = torch.empty_like(likelier, dtype=torch.bool)
        is_dropped.scatter_(-1, order, likelier >= sampling.top_p)
        probabilities = probabilities.masked_fill(is_dropped, 0.0)
    if sampling.min_p > 0:
        least = sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw(
    probabilities: Tensor,  # (batch, vocab) float64
    uniforms: Tensor,  # (batch,) float64, 0 <= u < 1
) -> Tensor:  # (batch,) int64
    """Return the token in whose part of the line from 0 to 1 each row's number falls."""
    ends = probabilities.cumsum(-1)
    ends = ends / ends[:, -1:]
    return torch.searchsorted(ends, uniforms[:, None], right=True)[:, 0]


def generator_of(seed: int, prompt: Sequence[int], sample: int) -> torch.Generator:
    """Return the numbers that one sample of one prompt is drawn with, whatever is beside it."""
    key = f"{seed}/{sample}/{','.join(map(str, prompt))}"
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
