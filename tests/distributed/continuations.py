"""Continuations by the plainest means: what generating has to come to."""

from pathlib import Path

import torch

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.evaluation.text_stream import TextStream
from titan_motif.model import Motif2Model


def greedy(model: Motif2Model, prompt: list[int], num_tokens: int) -> list[int]:
    """The likeliest tokens, each by a forward pass over all before it."""
    tokens = torch.tensor([prompt])
    for _ in range(num_tokens):
        with torch.no_grad():
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
    return tokens[0, len(prompt) :].tolist()


def pieces(folder: Path, tokens: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    """What a stream shows of a text, token by token; its tokenizer lies in a folder."""
    stream = TextStream(load_tokenizer(folder).tokenizer, stops)
    found = [stream.push(token) for token in tokens]
    found.append(stream.finish())
    assert stream.text == "".join(found)
    return found
