"""The bigram baseline against counts by hand, and sampling against the model's own logits."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif.evaluation import bigram
from titan_motif.evaluation.bigram import bigram_loss, excerpt
from titan_motif.evaluation.sharded_sampling import sample
from titan_motif.summary import summary_lines


def test_bigram_loss_by_hand():
    train = np.array([0, 1, 0, 1, 0, 2], dtype=np.uint16)  # pairs 01 x2, 10 x2, 02 x1
    unigram = {0: 4 / 9, 1: 3 / 9, 2: 2 / 9}  # counts 3, 2, 1, and one more each
    # after 0: 3 pairs, 2 different; after 1: 2 pairs, 1 different; after 2: none
    expected = {
        (0, 1): 1.25 / 3 + 0.75 * 2 / 3 * unigram[1],
        (0, 0): 0.75 * 2 / 3 * unigram[0],
        (1, 0): 1.25 / 2 + 0.75 / 2 * unigram[0],
        (2, 1): unigram[1],
    }
    for (a, b), p in expected.items():
        loss = bigram_loss(train, np.array([a]), np.array([b]), vocab_size=3)
        assert loss == pytest.approx(-math.log(p), rel=1e-12)
    pairs = np.array(list(expected))
    mean = bigram_loss(train, pairs[:, 0], pairs[:, 1], vocab_size=3)
    assert mean == pytest.approx(-np.log(list(expected.values())).mean(), rel=1e-12)


@pytest.mark.parametrize("previous", [0, 1, 2, 3])
def test_bigram_probabilities_sum_to_one(previous: int):
    train = np.random.default_rng(0).integers(0, 3, 50)  # token 3 is never seen
    losses = [bigram_loss(train, np.array([previous]), np.array([b]), 4) for b in range(4)]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1, rel=1e-12)


def test_a_large_corpus_is_counted_in_pieces_from_all_over_it(monkeypatch):
    tokens = np.arange(100_000)
    assert excerpt(tokens, 100_000) is tokens
    part = excerpt(tokens, 5_000).reshape(bigram.NUM_PIECES, 50)
    assert (np.diff(part, axis=1) == 1).all()
    assert part[0, 0] == 0
    assert part[-1, -1] == 99_999
    assert (abs(np.diff(part[:, 0]) - 99_950 / 99) <= 1).all()

    monkeypatch.setattr(bigram, "MAX_TRAIN_TOKENS", 1000)
    train = np.random.default_rng(0).integers(0, 7, 50_000)
    pairs = np.array([0, 1, 2]), np.array([3, 4, 5])
    assert bigram_loss(train, *pairs, 7) == bigram_loss(excerpt(train, 1000), *pairs, 7)


@pytest.mark.parametrize("counted", [300, bigram.MAX_TRAIN_TOKENS])
def test_the_summary_says_how_much_was_counted_if_not_all(counted: int):
    content = {
        "bits_per_byte": None,
        "train_loss": 2.0,
        "step": 1,
        "tokens_seen": 2,
        "validation_loss": 3.0,
        "bigram_validation_loss": 3.5,
        "bigram_train_tokens": counted,
        "samples": [],
        "files": {},
    }
    (line,) = [line for line in summary_lines(content) if "bigram model" in line]
    said = " (20,000,000 tokens counted)" if counted > 300 else ""
    assert line == f"  bigram model     3.5000 nats/token{said}: the run is 0.5000 under it"
    (line,) = [line for line in summary_lines(content) if "train loss" in line]
    assert line == "  train loss       2.0000 nats/token (logged steps of the last tenth)"


class Counting(nn.Module):
    """Gives token t + 1 the logit `certainty`, all others 0."""

    def __init__(self, certainty: float) -> None:
        super().__init__()
        self.certainty = certainty

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.certainty * nn.functional.one_hot((tokens + 1) % 5, 5).double()


def test_temperature_zero_takes_the_likeliest():
    tokens = sample(Counting(1.0), torch.tensor([[3], [1]]), num_tokens=4, temperature=0)
    assert tokens.tolist() == [[3, 4, 0, 1, 2], [1, 2, 3, 4, 0]]


def test_sampling_follows_the_temperature_and_the_seed():
    prompts = torch.zeros(4000, 1, dtype=torch.long)
    # odds of the next token over another one: exp(logit / temperature)
    drawn = sample(Counting(1.0), prompts, 1, temperature=0.5)[:, 1]
    share = (drawn == 1).double().mean().item()
    p = math.e**2 / (math.e**2 + 4)
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 4000)
    again = sample(Counting(1.0), prompts, 1, temperature=0.5)[:, 1]
    other = sample(Counting(1.0), prompts, 1, temperature=0.5, seed=1)[:, 1]
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
