"""The generated tasks of the experiments, against solvers that read the text alone."""

import random
import re

import pytest

from titan_motif.experiments import tasks
from titan_motif.experiments.tasks import TASKS, Problem, documents, fingerprint

RETRIEVAL, ARITHMETIC = TASKS


def solve_retrieval(context: str, question: str) -> str:
    """Follow the keys, as a reader of the text would."""
    facts = {}
    for key, value, following in re.findall(r"the (.+) holds (\d+) and opens (.+)\.\n", context):
        assert key not in facts
        facts[key] = value, following
    hops, key = re.fullmatch(r"open (\d) from (.+):", question).groups()
    for _ in range(int(hops) - 1):
        key = facts[key][1]
    return f" {facts[key][0]}."


def solve_arithmetic(context: str, question: str) -> str:
    """Let Python run the assignments, and take the remainder at the end alone."""
    first, *lines = context.splitlines()
    names: dict[str, int] = {}
    exec("\n".join(line.removeprefix("let ") for line in lines), {}, names)
    return f" {names[question.removeprefix('find ').removesuffix(':')] % int(first[4:])}."


SOLVERS = {"retrieval": solve_retrieval, "arithmetic": solve_arithmetic}


def num_steps(context: str, letter: str) -> int:
    """Count the assignments between a letter and a number."""
    sources = dict(re.findall(r"let (\w) = (\w+)", context))
    steps = 0
    while not (letter := sources[letter]).isdigit():
        steps += 1
    return steps


@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_answers_are_what_the_text_says(task):
    """Every answer, of every difficulty, equals that of a solver that has the text alone."""
    draw = random.Random(1)
    for difficulty in task.difficulties:
        for _ in range(40):
            problem = task.draw(draw, difficulty)
            for question, answer in problem.questions:
                assert answer == SOLVERS[task.name](problem.context, question)


def test_first_questions_have_the_difficulty():
    draw = random.Random(2)
    for difficulty in RETRIEVAL.difficulties:
        question = RETRIEVAL.draw(draw, difficulty).questions[0][0]
        assert question.startswith(f"open {difficulty} from ")
    for difficulty in ARITHMETIC.difficulties:
        problem = ARITHMETIC.draw(draw, difficulty)
        for question, _ in problem.questions[:2]:
            assert num_steps(problem.context, question[5]) == difficulty
        for question, _ in problem.questions[2:]:
            assert num_steps(problem.context, question[5]) < difficulty


def test_retrieval_has_confusable_keys_and_different_numbers():
    """A colour or a thing alone tells no fact; a guess among the numbers is right once in 24."""
    context = RETRIEVAL.draw(random.Random(3), 2).context
    facts = re.findall(r"the (\w+) (\w+) holds (\d+)", context)
    colours, things, values = map(list, zip(*facts, strict=True))
    assert len(facts) == len(set(values)) == 24
    assert min(map(colours.count, colours)) > 1
    assert min(map(things.count, things)) > 1
    # The links are one circle: so many hops from a key, no key comes twice.
    found = [solve_retrieval(context, f"open {hops} from {' '.join(facts[0][:2])}:")
             for hops in range(1, 10)]  # fmt: skip
    assert len(set(found)) == 9


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
    monkeypatch.setattr(tasks, "MODULUS", 19)
    assert fingerprint() != before
