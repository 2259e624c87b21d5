"""Generated tasks with exact answers: retrieval among distractors, arithmetic in several steps.

A problem is a context and questions about it. Which problems are held out follows from a hash of
the context alone, so that nothing that is learnt from has a context that is asked about later.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "grey")
THINGS = ("box", "bag", "jar", "case", "drawer", "basket", "chest", "tin")
NAMES = ("Ana", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
LETTERS = "abcdefghijklmnopqrstuvwxyz"

RETRIEVAL_QUESTIONS, ARITHMETIC_QUESTIONS = 8, 3
"""Of a context that is learnt from: most of what a model reads of a task is not to be foretold, and
answers are. Of one that is held out, the first is asked."""
_HELD_OUT = 32
"""Of 256 values of the hash's first byte: one context in eight."""


class Problem(NamedTuple):
    """A text, and questions about it that it alone decides."""

    context: str
    questions: tuple[tuple[str, str], ...]
    """(question, answer): the answer follows the question, and a full stop ends it."""

    @property
    def is_held_out(self) -> bool:
        """Whether it is kept for evaluation."""
        return hashlib.sha256(self.context.encode()).digest()[0] < _HELD_OUT

    def __str__(self) -> str:
        asked = (f"{question}{answer}\n" for question, answer in self.questions)
        return self.context + "".join(asked)


class Task(NamedTuple):
    """Problems of several difficulties."""

    name: str
    unit: str
    """What a difficulty counts."""
    difficulties: tuple[int, ...]
    draw: Callable[[random.Random, int], Problem]
    problems_per_document: int

    def document(self, draw: random.Random) -> str:
        """Return a document to learn from: problems of any difficulty, none held out."""
        found: list[str] = []
        while len(found) < self.problems_per_document:
            problem = self.draw(draw, draw.choice(self.difficulties))
            if not problem.is_held_out:
                found.append(str(problem))
        return "".join(found)

    def held_out(self, difficulty: int, num: int) -> list[Problem]:
        """Return problems of one difficulty to ask, always the same, no two alike."""
        draw = random.Random(f"{self.name} held out {difficulty}")
        found: dict[str, Problem] = {}
        while len(found) < num:
            problem = self.draw(draw, difficulty)
            if problem.is_held_out:
                found.setdefault(problem.context, problem)
        return list(found.values())


def draw_retrieval(draw: random.Random, num_facts: int) -> Problem:
    """Return facts whose keys have a colour, a thing and a name, and ask for some of them.

    The keys are of few colours, things and names: every fact shares two of its three with others,
    and all three are needed to tell them apart.
    """
    sizes = _pool_sizes(num_facts)
    pools = [
        draw.sample(words, size)
        for words, size in zip((COLOURS, THINGS, NAMES), sizes, strict=True)
    ]
    keys = draw.sample(list(product(*pools)), num_facts)
    values = draw.sample(range(10, 100), num_facts)
    facts = [
        f"The {colour} {thing} of {name} holds {value}.\n"
        for (colour, thing, name), value in zip(keys, values, strict=True)
    ]
    asked = draw.sample(range(num_facts), min(RETRIEVAL_QUESTIONS, num_facts))
    questions = []
    for number in asked:
        colour, thing, name = keys[number]
        question = f"Question: what does the {colour} {thing} of {name} hold?\nAnswer:"
        questions.append((question, f" {values[number]}."))
    return Problem("".join(facts), tuple(questions))


def _pool_sizes(num_keys: int) -> tuple[int, int, int]:
    """Return sizes, as near to each other as can be, whose product holds so many keys."""
    sizes = [2, 2, 2]
    while sizes[0] * sizes[1] * sizes[2] < num_keys:
        sizes[sizes.index(min(sizes))] += 1
    return sizes[0], sizes[1], sizes[2]


def draw_arithmetic(draw: random.Random, num_steps: int) -> Problem:
    """Return two chains of assignments among each other; the first question is a chain's end.

    All values lie between 0 and 99; a step adds or takes away 1 to 9, or doubles or triples.
    """
    half = num_steps + 1
    letters = draw.sample(LETTERS, 2 * half)
    chains = [_chain(draw, letters[:half]), _chain(draw, letters[half:])]
    order = [0] * half + [1] * half
    draw.shuffle(order)
    lines = [iter(lines) for lines, _ in chains]
    context = "".join(next(lines[number]) for number in order)
    values = dict(zip(letters, chains[0][1] + chains[1][1], strict=True))
    end = letters[num_steps]
    others = [letter for letter in letters if letter != end]
    asked = [end, *draw.sample(others, ARITHMETIC_QUESTIONS - 1)]
    questions = ((f"Question: {letter}?\nAnswer:", f" {values[letter]}.") for letter in asked)
    return Problem(context, tuple(questions))


def _chain(draw: random.Random, letters: list[str]) -> tuple[list[str], list[int]]:
    """Return the assignments, each of the letter before it, and the values."""
    values = [draw.randrange(100)]
    lines = [f"{letters[0]} = {values[0]}\n"]
    for before, letter in pairwise(letters):
        sign, number, result = _step(draw, values[-1])
        lines.append(f"{letter} = {before} {sign} {number}\n")
        values.append(result)
    return lines, values


def _step(draw: random.Random, value: int) -> tuple[str, int, int]:
    """Return a sign, a number and the result, which lies between 0 and 99."""
    while True:
        sign = draw.choice("+-*")
        number = draw.randint(2, 3) if sign == "*" else draw.randint(1, 9)
        result = {"+": value + number, "-": value - number, "*": value * number}[sign]
        if 0 <= result < 100:
            return sign, number, result


TASKS = (
    Task("retrieval", "facts", (8, 16, 24, 32), draw_retrieval, 1),
    Task("arithmetic", "steps", (1, 2, 3, 4, 6), draw_arithmetic, 4),
)


def documents(task: Task, first: int, num: int) -> Iterator[str]:
    """Yield documents by their numbers: each is drawn for itself, whoever else draws others."""
    for number in range(first, first + num):
        yield task.document(random.Random(f"{task.name} {number}"))


def write_documents(name: str, first: int, num: int, folder: Path) -> None:
    """Write the documents of a task's name as JSONL into a folder, under their first number."""
    task = next(task for task in TASKS if task.name == name)
    with (folder / f"{first:08}.jsonl").open("w") as file:
        for text in documents(task, first, num):
            file.write(json.dumps({"text": text}) + "\n")
