"""`needle`: a fact in a long text, asked for at its end.

A text of filler sentences states the numbers of four people; one of them, at a chosen depth, is
asked for. The choices are the four numbers, all of which stand in the text, so that chance is 1/4
and having seen a number is not enough. Nothing is generated: the likeliest choice is the answer.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.corpus.mathematics import NAMES
from titan_motif.evaluation.local_tasks.setting import Setting, Task, in_memory, mean_of

LENGTHS = (256, 1024, 4096, 16_384)
"""Tokens of a text, its question included, at most; those that the network takes are run."""
DEPTHS = (0, 25, 50, 75, 100)
"""Where the fact stands, in percent of the sentences before it."""
PER_DEPTH = 8
NUM_CHOICES = 4
FILLER = (
    "The river was quiet in the morning.",
    "A train left the station on time.",
    "Rain fell on the hills all day.",
    "The market opened late that week.",
    "Nobody had closed the garden gate.",
    "The lamps were lit one after the other.",
    "A letter lay on the table by the window.",
    "The road went on past the mill.",
)


def tasks(setting: Setting) -> list[Task]:
    """Return a task for each length that the network takes, `needle_LENGTH`.

    Raises: ValueError, one line, if it takes none of them
    """
    lengths = [length for length in LENGTHS if length <= setting.max_length]
    if not lengths:
        raise ValueError(
            f"needle's shortest text has {LENGTHS[0]} tokens; the network is given at most "
            f"{setting.max_length}"
        )
    tokenizer = load_tokenizer(setting.tokenizer_folder).tokenizer

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return [_task(length, count) for length in lengths]


def _task(length: int, count: Callable[[str], int]) -> Task:
    by_depth = [f"acc_depth_{depth}" for depth in DEPTHS]
    return {
        "task": f"needle_{length}",
        "custom_dataset": in_memory(test=haystacks(length, count)),
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "multiple_choice",
        "doc_to_text": _text,
        "doc_to_choice": _choices,
        "doc_to_target": _target,
        "process_results": judge,
        "metric_list": mean_of("acc", *by_depth),
        "metadata": {"version": 1},
    }


def haystacks(
    length: int, count: Callable[[str], int], per_depth: int = PER_DEPTH
) -> list[dict[str, Any]]:
    """Return texts of at most `length` tokens, the longest that whole sentences make.

    Args:
        count: tokens of a text
    """
    draw = random.Random(f"0/{length}")
    return [_haystack(draw, length, depth, count) for depth in DEPTHS for _ in range(per_depth)]


def _haystack(
    draw: random.Random, length: int, depth: int, count: Callable[[str], int]
) -> dict[str, Any]:
    names = draw.sample(NAMES, NUM_CHOICES)
    numbers = [str(number) for number in draw.sample(range(100, 1000), NUM_CHOICES)]
    asked = f"The number of {names[0]} is"
    facts = [f"The number of {n} is {number}." for n, number in zip(names, numbers, strict=True)]
    room = length - count(" ".join(facts) + f"\n{asked} {numbers[0]}")
    sentences = _filler(draw, room, count)
    for fact in facts[1:]:
        sentences.insert(draw.randrange(len(sentences) + 1), fact)
    sentences.insert(round(depth / 100 * len(sentences)), facts[0])
    order = draw.sample(range(NUM_CHOICES), NUM_CHOICES)
    return {
        "text": " ".join(sentences) + f"\n{asked}",
        "choices": [numbers[i] for i in order],
        "target": order.index(0),
        "depth": depth,
    }


def _filler(draw: random.Random, room: int, count: Callable[[str], int]) -> list[str]:
    """Return sentences that take at most so many tokens when they are joined."""
    sizes = {sentence: count(f" {sentence}") for sentence in FILLER}
    sentences: list[str] = []
    taken = 0
    while taken < room:
        sentences += draw.sample(FILLER, len(FILLER))
        taken += sum(sizes.values())
    # What they take together is not always what they take one by one.
    while sentences and count(" " + " ".join(sentences) + " ") > room:
        over = count(" " + " ".join(sentences) + " ") - room
        del sentences[-max(over // max(sizes.values()), 1) :]
    return sentences


def judge(document: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Return whether the likeliest choice is the fact's, also under the name of its depth."""
    likelihoods = [likelihood for likelihood, _ in results]
    is_right = float(likelihoods.index(max(likelihoods)) == document["target"])
    return {"acc": is_right, f"acc_depth_{document['depth']}": is_right}


def _text(document: Mapping[str, Any]) -> str:
    return document["text"]


def _choices(document: Mapping[str, Any]) -> list[str]:
    return document["choices"]


def _target(document: Mapping[str, Any]) -> int:
    return document["target"]
