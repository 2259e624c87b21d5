"""Which problems a model that was trained on the built-in corpus has not seen."""

from functools import cache
from itertools import islice

from titan_motif.corpus import mathematics

CORPUS_SEED = 0
CORPUS_PROBLEMS = 40_000
"""Problems that the built-in corpus holds at most: twice what its 9 MB take."""


@cache
def corpus_problems() -> frozenset[str]:
    """Return the problems of the built-in corpus as it is made by default, answers included.

    One of another seed may hold others, and one of 18 MB or more has more.
    """
    return frozenset(islice(mathematics.generate(CORPUS_SEED), CORPUS_PROBLEMS))


@cache
def corpus_questions() -> frozenset[str]:
    """Return the questions of `corpus_problems`."""
    return frozenset(problem.partition("\n")[0] for problem in corpus_problems())
