"""The cells of an experiment: an arm and a seed, each trained by itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """One training run, or what belongs to one."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}:{self.seed}"


def choose_cells(seeds_of: Mapping[str, int], seeds: int | None, words: str) -> list[Cell]:
    """Return the cells that were asked for: those named, or every arm with its seeds.

    A seed is run in all arms that have it before the next one, so that what is there first is a
    comparison.

    Args:
        seeds_of: seeds of each arm, unless others are asked for
        seeds:    of every arm; None leaves `seeds_of`
        words:    ARM:SEED with commas; empty for all
    Raises: ValueError, one line, for what is no cell, and for seeds beside words
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds is {seeds}; at least 1 is needed")
    if not words:
        numbers = {arm: seeds or number for arm, number in seeds_of.items()}
        return list(_by_seed(numbers))
    if seeds is not None:
        raise ValueError(f"--seeds and --cells are given; --cells {words} names the seeds itself")
    return list(dict.fromkeys(_cell(word, list(seeds_of)) for word in words.split(",")))


def _by_seed(numbers: Mapping[str, int]) -> Iterator[Cell]:
    for seed in range(max(numbers.values())):
        yield from (Cell(arm, seed) for arm, number in numbers.items() if seed < number)


def _cell(word: str, arms: Sequence[str]) -> Cell:
    arm, _, seed = word.strip().partition(":")
    if arm not in arms or not seed.isdecimal():
        raise ValueError(f"--cells has {word!r}; ARM:SEED is needed, ARM one of {', '.join(arms)}")
    return Cell(arm, int(seed))
