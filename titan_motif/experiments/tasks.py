"""Generated tasks with exact answers: retrieval in several hops, arithmetic in several steps.

Each asks for one lookup after another among confusable others, and for little else: what a lookup
finds is a number to tell, or one below 20 to add to. A word before keys and letters lets them be
the same token everywhere.

A problem is a context and questions about it. Which problems are held out follows from a hash of
the context alone, so that nothing that is learnt from has a context that is asked about later.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "grey")
THINGS = ("box", "bag", "jar", "case", "drawer", "basket", "chest", "tin")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUM_COLOURS, NUM_THINGS, NUM_FACTS = 5, 5, 24
"""Of a context: nearly all pairs of a colour and a thing are keys, so that each shares its colour
with about four others, and its thing with as many."""
MAX_HOPS = 4
MODULUS = 20
"""Of all results: one-step sums are few enough to be learnt."""

RETRIEVAL_QUESTIONS, ARITHMETIC_QUESTIONS = 26, 6
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
    """Problem of a difficulty, which its first question has."""
    problems_per_document: int
    """No more than there are difficulties."""

    def document(self, draw: random.Random) -> str:
        """Return a document to learn from: problems of different difficulties, none held out."""
        difficulties = draw.sample(self.difficulties, self.problems_per_document)
        return "".join(str(self._learnt(draw, difficulty)) for difficulty in difficulties)

    def _learnt(self, draw: random.Random, difficulty: int) -> Problem:
        while (problem := self.draw(draw, difficulty)).is_held_out:
            pass
        return problem

    def held_out(self, difficulty: int, num: int) -> list[Problem]:
        """Return problems of one difficulty to ask, always the same, no two alike."""
        draw = random.Random(f"{self.name} held out {difficulty}")
        found: dict[str, Problem] = {}
        while len(found) < num:
            problem = self.draw(draw, difficulty)
            if problem.is_held_out:
                found.setdefault(problem.context, problem)
        return list(found.values())


def draw_retrieval(draw: random.Random, num_hops: int) -> Problem:
    """Return facts, each of a key: a number and the next key; ask what is so many keys on.

    The keys' links are one circle, told in any order, so that every hop is a lookup among all
    facts. The first question is of `num_hops` lookups, the others of 1 to MAX_HOPS.
    """
    colours, things = draw.sample(COLOURS, NUM_COLOURS), draw.sample(THINGS, NUM_THINGS)
    keys = draw.sample(list(product(colours, things)), NUM_FACTS)  # in the order of the circle
    values = draw.sample(range(10, 100), NUM_FACTS)
    facts = []
    for number, ((colour, thing), value) in enumerate(zip(keys, values, strict=True)):
        next_colour, next_thing = keys[(number + 1) % NUM_FACTS]
        facts.append(f"the {colour} {thing} holds {value} and opens {next_colour} {next_thing}.\n")
    draw.shuffle(facts)
    possible = list(product(range(1, MAX_HOPS + 1), range(NUM_FACTS)))
    first = num_hops, draw.randrange(NUM_FACTS)
    possible.remove(first)
    questions = []
    for hops, number in (first, *draw.sample(possible, RETRIEVAL_QUESTIONS - 1)):
        colour, thing = keys[number]
        found = values[(number + hops - 1) % NUM_FACTS]
        questions.append((f"open {hops} from {colour} {thing}:", f" {found}."))
    return Problem("".join(facts), tuple(questions))


def draw_arithmetic(draw: random.Random, num_steps: int) -> Problem:
    """Return two chains of assignments among each other; the first questions are the chains' ends.

    A step adds or takes away 1 to 9; all results are modulo MODULUS. The other questions are of
    any letters before the ends.
    """
    half = num_steps + 1
    letters = draw.sample(LETTERS, 2 * half)
    lines, values = [], {}
    for chain in (letters[:half], letters[half:]):
        told, value, before = [], draw.randrange(MODULUS), ""
        for letter in chain:
            if before:
                sign, number = draw.choice("+-"), draw.randint(1, 9)
                value = (value + (number if sign == "+" else -number)) % MODULUS
                told.append(f"let {letter} = {before} {sign} {number}\n")
            else:
                told.append(f"let {letter} = {value}\n")
            values[letter], before = value, letter
        lines.append(iter(told))
    order = [0] * half + [1] * half
    draw.shuffle(order)
    context = f"mod {MODULUS}\n" + "".join(next(lines[number]) for number in order)
    ends = [letters[num_steps], letters[-1]]
    others = [letter for letter in letters if letter not in ends]
    asked = ends + draw.sample(others, min(ARITHMETIC_QUESTIONS - 2, len(others)))
    questions = ((f"find {letter}:", f" {values[letter]}.") for letter in asked)
    return Problem(context, tuple(questions))


TASKS = (
    Task("retrieval", "hops", tuple(range(1, MAX_HOPS + 1)), draw_retrieval, 1),
    Task("arithmetic", "steps", (1, 2, 3, 4, 5), draw_arithmetic, 5),
)


def fingerprint(num: int = 16) -> str:
    """Return a hash of a few problems of every task: it changes with whatever changes them."""
    digest = hashlib.sha256()
    for task in TASKS:
        for text in documents(task, 0, num):
            digest.update(text.encode())
        for difficulty in task.difficulties:
            digest.update(repr(task.held_out(difficulty, num)).encode())
    return digest.hexdigest()


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
