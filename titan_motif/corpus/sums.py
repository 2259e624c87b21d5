"""Sums of one- and two-digit numbers: some to learn from, others held out to be asked."""

import hashlib
import random

NUM_ASKED = 200

Sum = tuple[int, int]


def is_held_out(a: int, b: int) -> bool:
    """Return whether a + b is kept for evaluation, in both orders: one sum in ten."""
    low, high = sorted((a, b))
    return hashlib.sha256(f"{low}+{high}".encode()).digest()[0] < 26


def split_sums() -> tuple[list[Sum], list[Sum]]:
    """Return the sums to learn from and those held out, each in an order that was drawn once.

    Together they are all a + b with a and b from 0 to 99.
    """
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(0).shuffle(pairs)
    held_out = [pair for pair in pairs if is_held_out(*pair)]
    return [pair for pair in pairs if not is_held_out(*pair)], held_out


def question(a: int, b: int) -> str:
    """Return what is asked, as the built-in corpus asks it."""
    return f"What is {a} + {b}?"


def answer(a: int, b: int) -> str:
    """Return what is answered: the corpus's own step, which is all there is to say."""
    return f"{a} + {b} = {a + b}."
