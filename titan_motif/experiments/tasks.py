"""Generated tasks with exact answers: retrieval among distractors, arithmetic in several steps.

Models of this size, after 300M tokens, find any one fact among 32 without a fault, and none by a
key that another fact tells: what is asked takes one lookup at a time, and differs in how alike the
distractors are, and in how many lookups and sums have to be right one after the other. A word
before keys and letters lets them be the same token everywhere.

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
NUM_COLOURS, NUM_THINGS, NUM_FACTS = 6, 6, 32
"""Of a context: where every key has one entry, nearly all pairs of a colour and a thing are keys,
so that each shares its colour with about five others, and its thing with as many."""
MODULUS = 100
"""Of all results."""
MAX_STEP = 29
"""What a step adds or takes away at most. The 25M parameters do not learn sums of any two numbers
below 100 from 4 million of them; up to 29 they learnt the rule within as many (84% of single steps
right, 67% of eight in a row), up to 9 they had not yet begun to (35% and none)."""

RETRIEVAL_QUESTIONS = 24
"""Of a context that is learnt from, at most: most of what a model reads of a task is not to be
foretold, and answers are. Of one that is held out, the first is asked."""
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
    """Problem of a difficulty."""
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


def draw_retrieval(draw: random.Random, num_entries: int) -> Problem:
    """Return entries under keys, `num_entries` for each; ask for the first, second, ... of a key.

    All entries stand in any order. The key tells them from those of keys that share its colour or
    its thing, and their order from each other: a guess among a key's own is right once in
    `num_entries`.
    """
    num_keys = NUM_FACTS // num_entries
    colours, things = draw.sample(COLOURS, NUM_COLOURS), draw.sample(THINGS, NUM_THINGS)
    keys = [f"{c} {t}" for c, t in draw.sample(list(product(colours, things)), num_keys)]
    entries = list(zip(keys * num_entries, draw.sample(range(10, 100), NUM_FACTS), strict=True))
    draw.shuffle(entries)
    values: dict[str, list[int]] = {key: [] for key in keys}
    for key, value in entries:
        values[key].append(value)
    context = "".join(f"the {key} gets {value}.\n" for key, value in entries)
    possible = list(product(keys, range(num_entries)))
    asked = draw.sample(possible, min(RETRIEVAL_QUESTIONS, len(possible)))
    questions = ((f"entry {n + 1} of {key}:", f" {values[key][n]}.") for key, n in asked)
    return Problem(context, tuple(questions))


def draw_arithmetic(draw: random.Random, num_steps: int) -> Problem:
    """Return two chains of assignments among each other; ask to work out each from its beginning.

    An answer has the value of every letter on the way, so that each needs one lookup and one sum;
    it is right if all are. A step adds or takes away 1 to MAX_STEP, modulo MODULUS.
    """
    half = num_steps + 1
    letters = draw.sample(LETTERS, 2 * half)
    lines, questions = [], []
    for chain in (letters[:half], letters[half:]):
        told, worked, value, before = [], [], draw.randrange(MODULUS), ""
        for letter in chain:
            if before:
                sign, number = draw.choice("+-"), draw.randrange(1, MAX_STEP + 1)
                value = (value + (number if sign == "+" else -number)) % MODULUS
                told.append(f"let {letter} = {before} {sign} {number}\n")
            else:
                told.append(f"let {letter} = {value}\n")
            worked.append(f" {letter} is {value}")
            before = letter
        lines.append(iter(told))
        questions.append((f"from {chain[0]} to {chain[-1]}:", ",".join(worked) + "."))
    order = [0] * half + [1] * half
    draw.shuffle(order)
    context = f"mod {MODULUS}\n" + "".join(next(lines[number]) for number in order)
    return Problem(context, tuple(questions))


TASKS = (
    Task("retrieval", "values", (1, 2, 4, 8), draw_retrieval, 1),
    Task("arithmetic", "steps", (1, 2, 4, 8), draw_arithmetic, 4),
)


def fingerprint() -> str:
    """Return a hash of a few problems of every task: it changes with whatever changes them."""
    digest = hashlib.sha256()
    num = 16
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
