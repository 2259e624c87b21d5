"""A bigram model of the training tokens: what a network has to beat to have learnt context."""

import numpy as np

DISCOUNT = 0.75
"""Taken off each count that was seen, and given to the unigram distribution."""
MAX_TRAIN_TOKENS = 20_000_000
"""Counting takes 18 bytes and a sort for each token: 18 GB for 1B, at the very end of a run."""
NUM_PIECES = 100
"""A larger corpus is counted in pieces from all over it, since sources may lie one after another;
the pairs across their 99 seams do not matter."""


def bigram_loss(
    train_tokens: np.ndarray,  # (n,) integers
    previous: np.ndarray,  # (m,) integers
    following: np.ndarray,  # (m,) integers
    vocab_size: int,
) -> float:
    """Return the mean loss, in nats per token, of `following` given `previous`.

    Counted over MAX_TRAIN_TOKENS of the training tokens at most.

    Equation: p(b | a) = max(c(a, b) - D, 0) / c(a) + D n(a) / c(a) p(b), where n(a) counts the
              different tokens seen after a and p(b) is the unigram with one added to each count
              (absolute discounting, Ney et al. 1994)
    """
    train = excerpt(train_tokens, MAX_TRAIN_TOKENS).astype(np.int64)
    unigram = np.bincount(train, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    first = pairs // vocab_size
    total = np.bincount(first, weights=counts, minlength=vocab_size)
    distinct = np.bincount(first, minlength=vocab_size)

    asked = previous.astype(np.int64) * vocab_size + following
    place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    count = np.where(pairs[place] == asked, counts[place], 0)
    seen = np.maximum(total[previous], 1)
    kept = np.maximum(count - DISCOUNT, 0) / seen
    given = np.where(total[previous] > 0, DISCOUNT * distinct[previous] / seen, 1.0)
    return float(-np.log(kept + given * unigram[following]).mean())


def excerpt(tokens: np.ndarray, max_tokens: int) -> np.ndarray:
    """Return the tokens, or max_tokens of them in NUM_PIECES pieces at equal distances."""
    if len(tokens) <= max_tokens:
        return tokens
    length = max_tokens // NUM_PIECES
    begins = np.linspace(0, len(tokens) - length, NUM_PIECES).astype(np.int64)
    return np.concatenate([tokens[begin : begin + length] for begin in begins])
