"""What the drill puts in: a fault, its numbered cases, and what became of each."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """What became of a case."""

    is_held: bool
    """Whether all was seen that the fault's bar asks for."""
    told: str
    """What was seen, in a line; of a case that is not held, what was missed."""


class Fault(NamedTuple):
    """A kind of fault."""

    name: str
    """As --only has it."""
    title: str
    """What is put in, as the page tells it."""
    bar: str
    """What has to hold in every case, as the page tells it."""
    count: int
    """Cases of a whole drill."""
    num_quick: int
    """Cases of a quick one: they take a few seconds in all."""
    run: Callable[[int, Path], Outcome]
    """Put case number N into an empty folder and see what becomes of it.

    A case follows from its number alone: the same one can be run again. What is left in the folder
    of a case that held is removed.
    """
