"""Mathematics: word problems with worked answers, generated from a seed, no two alike.

Each template draws its numbers, works the answer out step by step, and ends in `Answer: N.`
"""

import random
from collections.abc import Callable, Iterator
from itertools import chain

NAMES = ("Ana", "Ben", "Chen", "Dina", "Emil", "Fatou", "Goran", "Hye-jin", "Ines", "Jonas")
THINGS = ("apples", "books", "candles", "tickets", "pencils", "bottles", "stamps", "chairs")

PROBLEMS_PER_DOCUMENT = 6


def documents(seed: int) -> Iterator[str]:
    """Yield documents of a few problems each, without end."""
    problems = generate(seed)
    while True:
        yield "\n\n".join(next(problems) for _ in range(PROBLEMS_PER_DOCUMENT))


def generate(seed: int) -> Iterator[str]:
    """Yield problems with their worked answers, without end, no two alike."""
    draw = random.Random(seed)
    seen = set()
    while True:
        problem = draw.choice(TEMPLATES)(draw)
        if problem not in seen:
            seen.add(problem)
            yield problem


def _problem(question: str, steps: list[str], answer: int) -> str:
    return "\n".join(chain([f"Question: {question}"], steps, [f"Answer: {answer}."]))


def addition(draw: random.Random) -> str:
    """Return a problem of adding two numbers."""
    a, b = draw.randrange(1000), draw.randrange(1000)
    return _problem(f"What is {a} + {b}?", [f"{a} + {b} = {a + b}."], a + b)


def subtraction(draw: random.Random) -> str:
    """Return a problem of subtracting a number from a larger one."""
    a, b = sorted((draw.randrange(1000), draw.randrange(1000)), reverse=True)
    return _problem(f"What is {a} - {b}?", [f"{a} - {b} = {a - b}."], a - b)


def multiplication(draw: random.Random) -> str:
    """Return a problem of multiplying by tens and ones."""
    a, b = draw.randrange(2, 100), draw.randrange(2, 100)
    tens, ones = b // 10 * 10, b % 10
    steps = [f"{a} x {b} = {a} x {tens} + {a} x {ones} = {a * tens} + {a * ones} = {a * b}."]
    return _problem(f"What is {a} x {b}?", steps, a * b)


def shopping(draw: random.Random) -> str:
    """Return a problem of change that is given back."""
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    count, price = draw.randrange(2, 13), draw.randrange(2, 30)
    cost = count * price
    paid = cost + draw.randrange(1, 60)
    question = (
        f"{name} buys {count} {thing} at {price} coins each and pays with {paid} coins. "
        f"How many coins does {name} get back?"
    )
    steps = [
        f"The {thing} cost {count} x {price} = {cost} coins.",
        f"{name} gets back {paid} - {cost} = {paid - cost} coins.",
    ]
    return _problem(question, steps, paid - cost)


def journey(draw: random.Random) -> str:
    """Return a problem of a way in two parts."""
    name = draw.choice(NAMES)
    speed, hours, more = draw.randrange(3, 90), draw.randrange(2, 9), draw.randrange(5, 200)
    way = speed * hours
    question = (
        f"{name} travels {hours} hours at {speed} km an hour and then {more} km more. "
        f"How far does {name} travel?"
    )
    steps = [
        f"In {hours} hours {name} covers {hours} x {speed} = {way} km.",
        f"Together {way} + {more} = {way + more} km.",
    ]
    return _problem(question, steps, way + more)


def ages(draw: random.Random) -> str:
    """Return a problem of two ages."""
    young, old = draw.sample(NAMES, 2)
    age, times, years = draw.randrange(2, 15), draw.randrange(2, 6), draw.randrange(1, 20)
    question = (
        f"{young} is {age} years old and {old} is {times} times as old. "
        f"How old will {old} be in {years} years?"
    )
    steps = [
        f"{old} is {times} x {age} = {times * age} years old now.",
        f"In {years} years {old} will be {times * age} + {years} = {times * age + years}.",
    ]
    return _problem(question, steps, times * age + years)


def percentage(draw: random.Random) -> str:
    """Return a problem of what is left of a share."""
    thing = draw.choice(THINGS)
    percent, hundreds = draw.choice((5, 10, 20, 25, 40, 50, 75)), draw.randrange(1, 60)
    whole = hundreds * 20
    part = whole * percent // 100
    question = f"{percent}% of {whole} {thing} are sold. How many {thing} are left?"
    steps = [
        f"{percent}% of {whole} is {whole} x {percent} / 100 = {part}.",
        f"There are {whole} - {part} = {whole - part} {thing} left.",
    ]
    return _problem(question, steps, whole - part)


def sharing(draw: random.Random) -> str:
    """Return a problem of a division with a remainder."""
    thing = draw.choice(THINGS)
    people, each, rest = draw.randrange(3, 13), draw.randrange(2, 40), draw.randrange(1, 3)
    whole = people * each + rest
    question = (
        f"{whole} {thing} are shared by {people} people, each getting as many as the others. "
        f"How many {thing} remain?"
    )
    steps = [
        f"Each gets {each}, since {people} x {each} = {people * each}.",
        f"There remain {whole} - {people * each} = {rest}.",
    ]
    return _problem(question, steps, rest)


TEMPLATES: tuple[Callable[[random.Random], str], ...] = (
    addition,
    subtraction,
    multiplication,
    shopping,
    journey,
    ages,
    percentage,
    sharing,
)
