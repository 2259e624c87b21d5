"""Continue a batch of prompts with a key-value cache, each row as if it were alone."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from titan_motif.evaluation.next_token import Sampling, draw, generator_of, token_probabilities
from titan_motif.model import Motif2Model
from titan_motif.model.decoding import Decoder

CHUNK_TOKENS = 4096
"""Tokens of a prompt that are run at once: what bounds the activations, and the cache's mask. A
prompt that is no longer takes the model's own attention kernels."""


@dataclass
class Continuation:
    """What has come after a prompt."""

    prompt: list[int]
    sample: int
    """Which one of the prompt's samples, from 0."""
    tokens: list[int] = field(default_factory=list)
    """Without the stop token."""
    ended_by: Literal["length", "stop_token", "caller"] = "length"


@dataclass
class Speed:
    """What a call has taken; calls that are given the same record add up."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.new_tokens / max(self.new_seconds, 1e-9)
        return (
            f"{self.prompt_tokens:,} prompt tokens in {self.prompt_seconds:.2f} s, "
            f"{self.new_tokens:,} new tokens in {self.new_seconds:.2f} s: {rate:,.1f} tokens/s"
        )


@torch.no_grad()
def continue_prompts(
    model: Motif2Model,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    *,
    stop_tokens: Collection[int] = (),
    samples: Sequence[int] = (0,),
    on_token: Callable[[int, int], bool] | None = None,
    speed: Speed | None = None,
) -> list[Continuation]:
    """Return each prompt's samples of these numbers, those of the first prompt first.

    Args:
        prompts:     lists of token ids, of any lengths
        samples:     a prompt's samples of different numbers differ; one's tokens do not depend on
            which others there are
        stop_tokens: a row ends before one of these
        on_token:    is told (row, token) of every token that is kept; True ends the row
    Raises: ValueError, one line, for a prompt that is empty, has an id that the network has not, or
            leaves no room for max_new_tokens; for numbers and options out of range
    """
    sampling.check()
    _check(model, prompts, max_new_tokens)
    speed = Speed() if speed is None else speed
    rows = [Continuation(list(p), i) for p in prompts for i in samples]
    begin = time.perf_counter()
    decoder = Decoder(model, len(prompts), max(map(len, prompts)) + max_new_tokens)
    logits = _run_prompts(decoder, prompts).repeat_interleave(len(samples), dim=0)
    decoder.cache.repeat(len(samples))
    chooser = _Chooser(rows, sampling, logits)
    chosen = chooser.choose(logits)  # waits for the device, too
    now = time.perf_counter()
    speed.prompt_tokens += sum(map(len, prompts))
    speed.prompt_seconds += now - begin
    begin, is_open = now, [True] * len(rows)
    for step in range(max_new_tokens):
        for number, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            if not is_open[number]:
                continue
            if token in stop_tokens:
                row.ended_by, is_open[number] = "stop_token", False
                continue
            row.tokens.append(token)
            if on_token is not None and on_token(number, token):
                row.ended_by, is_open[number] = "caller", False
        if step == max_new_tokens - 1 or not any(is_open):
            break
        # Rows that have ended go along: what they compute is not looked at.
        tokens = torch.tensor(chosen, device=decoder.device)[:, None]
        h = decoder.extend(tokens, [len(row.prompt) + step for row in rows])
        chosen = chooser.choose(decoder.logits(h[:, 0]))
    speed.new_tokens += sum(len(row.tokens) for row in rows)
    speed.new_seconds += time.perf_counter() - begin
    return rows


def _check(model: Motif2Model, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    args = model.model_args
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {max_new_tokens}; at least 1 is needed")
    if not prompts:
        raise ValueError("there are no prompts; at least one is needed")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise ValueError(f"prompt {number} is empty; at least one token is needed")
        if not 0 <= min(prompt) <= max(prompt) < args.vocab_size:
            raise ValueError(
                f"prompt {number} has the token {max(prompt)}; the network knows "
                f"{args.vocab_size}: is the tokenizer another model's?"
            )
        if len(prompt) + max_new_tokens > args.max_seq_len:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, and {max_new_tokens} are to follow; "
                f"the network is meant for {args.max_seq_len}"
            )


def _run_prompts(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Fill the cache and return the logits after each prompt, (prompts, vocab)."""
    longest = max(map(len, prompts))
    padded = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=decoder.device)
    found = None
    for begin in range(0, longest, CHUNK_TOKENS):
        chunk = padded[:, begin : begin + CHUNK_TOKENS].to(decoder.device)
        h = decoder.extend(chunk, [begin] * len(prompts))
        place = (last - begin).clamp(0, chunk.shape[1] - 1)
        here = h[torch.arange(len(prompts), device=decoder.device), place]  # (prompts, dim)
        is_here = (last >= begin) & (last < begin + chunk.shape[1])
        found = here if found is None else torch.where(is_here[:, None], here, found)
    return decoder.logits(found)


class _Chooser:
    """Draws every row's tokens with the row's own numbers."""

    def __init__(self, rows: Sequence[Continuation], sampling: Sampling, logits: Tensor) -> None:
        self.sampling = sampling
        self.generators = [generator_of(sampling.seed, row.prompt, row.sample) for row in rows]
        self.seen = None
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros_like(logits, dtype=torch.bool)
            for row, seen in zip(rows, self.seen, strict=True):
                seen[torch.tensor(row.prompt, device=logits.device)] = True

    def choose(self, logits: Tensor) -> list[int]:
        """Return the next token of each row, from its logits (rows, vocab)."""
        probabilities = token_probabilities(logits, self.sampling, self.seen)
        drawn = [torch.rand(1, generator=g, dtype=torch.float64) for g in self.generators]
        chosen = draw(probabilities, torch.cat(drawn).to(logits.device))
        if self.seen is not None:
            self.seen.scatter_(1, chosen[:, None], True)
        return chosen.tolist()
