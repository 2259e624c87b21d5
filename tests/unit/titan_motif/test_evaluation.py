"""The bigram baseline against counts by hand, and sampling against the model's own logits."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from titan_motif.evaluation.bigram import bigram_loss
from titan_motif.evaluation.sampling import sample


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
