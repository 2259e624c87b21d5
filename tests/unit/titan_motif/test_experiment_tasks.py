"""The generated tasks of the experiments, against solvers that read the text alone."""

import random
import re

import pytest

from titan_motif.experiments import tasks
from titan_motif.experiments.tasks import TASKS, Problem, documents, fingerprint

RETRIEVAL, ARITHMETIC = TASKS


def solve_retrieval(context: str, question: str) -> str:
    """Read the entries of the key from above, as a reader of the text would."""
    number, key = re.fullmatch(r"entry (\d) of (.+):", question).groups()
    values = re.findall(rf"the {key} gets (\d+)\.", context)
    return f" {values[int(number) - 1]}."


def solve_arithmetic(context: str, question: str) -> str:
    """Let Python run the assignments, and take the remainder at the end alone."""
    first, *lines = context.splitlines()
    names: dict[str, int] = {}
    exec("\n".join(line.removeprefix("let ") for line in lines), {}, names)
    first_letter, last = re.fullmatch(r"from (\w) to (\w):", question).groups()
    sources = dict(re.findall(r"let (\w) = (\w+)", context))
    way = [last]
    while way[0] != first_letter:
        way.insert(0, sources[way[0]])
    return ",".join(f" {letter} is {names[letter] % int(first[4:])}" for letter in way) + "."


SOLVERS = {"retrieval": solve_retrieval, "arithmetic": solve_arithmetic}


@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_answers_are_what_the_text_says(task):
    """Every answer, of every difficulty, equals that of a solver that has the text alone."""
    draw = random.Random(1)
    for difficulty in task.difficulties:
        for _ in range(40):
            problem = task.draw(draw, difficulty)
            for question, answer in problem.questions:
                assert answer == SOLVERS[task.name](problem.context, question)


def test_problems_have_their_difficulty():
    draw = random.Random(2)
    for difficulty in RETRIEVAL.difficulties:
        problem = RETRIEVAL.draw(draw, difficulty)
        keys = re.findall(r"the (.+) gets", problem.context)
        assert {keys.count(key) for key in keys} == {difficulty}
        assert len(set(problem.questions)) == len(problem.questions) == min(24, len(keys))
        asked = {int(question[6]) for question, _ in problem.questions}
        assert asked == set(range(1, difficulty + 1))
    for difficulty in ARITHMETIC.difficulties:
        problem = ARITHMETIC.draw(draw, difficulty)
        assert [answer.count(",") for _, answer in problem.questions] == [difficulty] * 2


def test_retrieval_has_confusable_keys_and_different_numbers():
    """A colour or a thing alone tells no entry, nor does a number come twice."""
    context = RETRIEVAL.draw(random.Random(3), 1).context
    facts = re.findall(r"the (\w+) (\w+) gets (\d+)", context)
    colours, things, values = map(list, zip(*facts, strict=True))
    assert len(facts) == len(set(values)) == 32
    assert min(map(colours.count, colours)) > 1
    assert min(map(things.count, things)) > 1


def contexts(text: str) -> list[str]:
    """Return the contexts of a document."""
    return re.findall(r"(?:mod \d+\n)?(?:(?:the|let) .*\n)+", text)


@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_held_out_problems_are_never_learnt_from(task):
    learnt = {context for text in documents(task, 0, 50) for context in contexts(text)}
    assert len(learnt) == 50 * task.problems_per_document
    assert not any(Problem(context, ()).is_held_out for context in learnt)
    for difficulty in task.difficulties:
        asked = task.held_out(difficulty, 20)
        assert len({problem.context for problem in asked}) == 20
        assert all(problem.is_held_out for problem in asked)


def test_documents_are_the_same_whoever_draws_them():
    for task in TASKS:
        assert list(documents(task, 5, 3)) == list(documents(task, 0, 8))[5:]
        assert task.held_out(2, 5) == task.held_out(2, 9)[:5]


def test_fingerprint_tells_generators_apart(monkeypatch):
    before = fingerprint()
    assert before == fingerprint()
    monkeypatch.setattr(tasks, "MODULUS", 99)
    assert fingerprint() != before
