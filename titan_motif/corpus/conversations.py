"""Conversations to fine-tune a small model on: python -m titan_motif.corpus.conversations.

Made from the built-in corpus's own sources, so that nothing is downloaded: sums and word problems
with their worked answers, and what one may ask about a text or a piece of code. Two files:

    stage1.jsonl   sums, problems, and instructions over English and code
    stage2.jsonl   problems with their reasoning apart, more sums, and, as synthetic data come,
                   repeats, answers that are wrong and answers that say nothing: for
                   `titan-motif data prune` to find

Each row has `messages`, `kind`, and where the answer can be checked, `answer`.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titan_motif.components.whole_files import replace_text
from titan_motif.corpus import code, english, mathematics
from titan_motif.corpus.sums import answer, question, split_sums

NUM_SUMS, NUM_PROBLEMS, NUM_TEXTS = 8880, 120, 80
"""Of the first stage; enough sums for 1.5 million parameters to learn how to add."""
SHARE_OF_REPEATS = 0.1
SHARE_OF_WRONG = 0.05
WORDS_ASKED, WORDS_SHOWN = 6, 14
"""Of a text: what is to be continued, and what is shown of it."""

Row = dict[str, Any]


def stage_1(seed: int = 0) -> Iterator[Row]:
    """Yield the first stage's conversations, mixed."""
    draw = random.Random(seed)
    rows = [*_sums(NUM_SUMS, draw), *_problems(NUM_PROBLEMS, seed, reasons=False)]
    rows += _instructions(NUM_TEXTS, draw)
    draw.shuffle(rows)
    yield from rows


def stage_2(seed: int = 0) -> Iterator[Row]:
    """Yield the second stage's conversations, mixed, some of them of no use."""
    draw = random.Random(seed + 1)
    good = [*_sums(NUM_SUMS // 3, draw), *_problems(2 * NUM_PROBLEMS, seed + 1, reasons=True)]
    repeats = [dict(row) for row in draw.sample(good, round(SHARE_OF_REPEATS * len(good)))]
    rows = [*good, *repeats, *_wrong(draw.sample(good, round(SHARE_OF_WRONG * len(good))))]
    draw.shuffle(rows)
    yield from rows


def _row(kind: str, asked: str, answered: str, **more: Any) -> Row:
    message = {"role": "assistant", "content": answered}
    if "reasoning" in more:
        message["reasoning_content"] = more.pop("reasoning")
    return {"messages": [{"role": "user", "content": asked}, message], "kind": kind, **more}


def _sums(num: int, draw: random.Random) -> list[Row]:
    learnt, _ = split_sums()
    pairs = draw.sample(learnt, num)
    return [_row("sum", question(a, b), answer(a, b), answer=a + b) for a, b in pairs]


def _problems(num: int, seed: int, reasons: bool) -> list[Row]:
    """Return word problems, and sums of larger numbers; none of those that are held out."""
    held_out = {question(a, b) for a, b in split_sums()[1]}
    rows = []
    for problem in mathematics.generate(seed + 100):
        first, *steps, last = problem.splitlines()
        asked = first.removeprefix("Question: ")
        if asked in held_out:
            continue
        result = int(last.removeprefix("Answer: ").removesuffix("."))
        if reasons:
            worked = "\n".join(steps)
            rows.append(_row("problem", asked, last, reasoning=worked, answer=result))
        else:
            rows.append(_row("problem", asked, "\n".join([*steps, last]), answer=result))
        if len(rows) == num:
            return rows
    raise AssertionError("problems have no end")


def _instructions(num: int, draw: random.Random) -> list[Row]:
    """Return questions about pieces of text and of code."""
    rows = []
    for kind, source in (("English", english.documents()), ("Python", code.documents())):
        for text, _ in zip(source, range(num // 4), strict=False):
            words = text.split()
            if len(words) < 2 * WORDS_SHOWN:
                continue
            begin = draw.randrange(len(words) - WORDS_SHOWN)
            shown = words[begin : begin + WORDS_SHOWN]
            piece = " ".join(shown)
            rows.append(_row("kind", f"Is this English or Python?\n{piece}", f"{kind}."))
            asked, rest = shown[:-WORDS_ASKED], shown[-WORDS_ASKED:]
            rows.append(_row("continue", "Go on: " + " ".join(asked), " ".join(rest)))
    return rows


def _wrong(rows: list[Row]) -> list[Row]:
    """Return rows whose answer is not the right one, or none at all."""
    spoilt = []
    for number, row in enumerate(rows):
        asked, said = row["messages"]
        wrong = row["answer"] + 1 + number % 7
        content = "" if number % 3 == 0 else f"Answer: {wrong}."
        spoilt.append(row | {"messages": [asked, said | {"content": content}]})
    return spoilt


def write(folder: Path, seed: int = 0) -> None:
    """Write both files, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("stage1", stage_1(seed)), ("stage2", stage_2(seed))):
        replace_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Write the conversations that a command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m titan_motif.corpus.conversations")
    parser.add_argument("--output", type=Path, default=Path("data/conversations"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.output, options.seed)
    print(f"conversations: {options.output}/stage1.jsonl, stage2.jsonl", flush=True)


if __name__ == "__main__":
    main()
