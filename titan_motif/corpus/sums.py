"""Sums of one- and two-digit numbers: some to learn from, others held out to be asked."""

import random

NUM_HELD_OUT = 200
NUM_OF_ONE_DIGIT = 30
"""Of those that are held out; the rest has a number of two digits."""

Sum = tuple[int, int]


def split_sums(seed: int = 0) -> tuple[list[Sum], list[Sum]]:
    """Return the sums to learn from and those held out, each in an order drawn from the seed.

    Together they are all a + b with a and b from 0 to 99; a + b and b + a are two of them.
    """
    draw = random.Random(seed)
    small = [(a, b) for a in range(10) for b in range(10)]
    large = [(a, b) for a in range(100) for b in range(100) if max(a, b) > 9]
    draw.shuffle(small)
    draw.shuffle(large)
    num_large = NUM_HELD_OUT - NUM_OF_ONE_DIGIT
    held_out = small[:NUM_OF_ONE_DIGIT] + large[:num_large]
    learnt = small[NUM_OF_ONE_DIGIT:] + large[num_large:]
    draw.shuffle(held_out)
    draw.shuffle(learnt)
    return learnt, held_out


def question(a: int, b: int) -> str:
    """Return what is asked, as the built-in corpus asks it."""
    return f"What is {a} + {b}?"


def answer(a: int, b: int) -> str:
    """Return what is answered: the corpus's own step, which is all there is to say."""
    return f"{a} + {b} = {a + b}."
