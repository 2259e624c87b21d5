"""The distribution of the next token against a plain loop, and draws from it."""

import dataclasses
import math

import pytest
import torch

from titan_motif.evaluation.next_token import Sampling, draw, generator_of, token_probabilities


def plain_probabilities(logits: list[float], sampling: Sampling, seen: set[int]) -> list[float]:
    """What the docstrings of Sampling say, token by token."""
    penalty = sampling.repetition_penalty
    for token in seen:
        x = logits[token]
        logits[token] = x / penalty if x > 0 else x * penalty
    weights = {t: math.exp(x / sampling.temperature) for t, x in enumerate(logits)}
    order = sorted(weights, key=weights.__getitem__, reverse=True)
    if sampling.top_k:
        order = order[: sampling.top_k]
    total, kept, mass = sum(weights[t] for t in order), [], 0.0
    for token in order:
        if mass >= sampling.top_p:
            break
        kept.append(token)
        mass += weights[token] / total
    kept = [t for t in kept if weights[t] >= sampling.min_p * weights[kept[0]]]
    total = sum(weights[t] for t in kept)
    return [weights[t] / total if t in kept else 0.0 for t in range(len(logits))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 40},
        {"top_p": 0.6},
        {"top_p": 1e-9},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"temperature": 1.4, "top_k": 12, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2},
    ],
)
def test_probabilities_are_those_of_a_plain_loop(changes: dict):
    sampling = dataclasses.replace(Sampling(), **changes)
    logits = 2 * torch.randn(3, 30, generator=torch.Generator().manual_seed(3))
    seen = torch.zeros(3, 30, dtype=torch.bool)
    seen[0, [2, 5]] = seen[1, 9] = seen[2] = True
    found = token_probabilities(logits, sampling, seen)
    for row in range(3):
        tokens = set(seen[row].nonzero()[:, 0].tolist())
        expected = plain_probabilities(logits[row].double().tolist(), sampling, tokens)
        assert found[row].tolist() == pytest.approx(expected, abs=1e-14)


def test_extremes_of_sampling():
    logits = torch.tensor([[1.0, 3.0, 3.0, -2.0]])
    assert token_probabilities(logits, Sampling(temperature=0)).tolist() == [[0, 1, 0, 0]]
    cold = token_probabilities(logits * 1e4, Sampling(temperature=1e-300))
    assert cold.tolist() == [[0, 0.5, 0.5, 0]]


def test_a_draw_inverts_the_distribution():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    for uniform, token in ((0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (1 - 2**-53, 4)):
        drawn = draw(probabilities, torch.tensor([uniform], dtype=torch.float64))
        assert drawn.tolist() == [token]
    # Many numbers of one generator: each token as often as it should be, and never at zero.
    number = generator_of(0, [1, 2], 0)
    uniforms = torch.rand(8000, generator=number, dtype=torch.float64)
    shares = draw(probabilities.expand(8000, 6), uniforms).bincount(minlength=6) / 8000
    assert shares.tolist() == pytest.approx(probabilities[0].tolist(), abs=4 * 0.5 / 8000**0.5)
    assert (shares > 0).tolist() == (probabilities[0] > 0).tolist()
