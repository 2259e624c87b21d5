"""How many held-out sums a model gets right: python -m titan_motif.evaluation.sums CHECKPOINT.

A base model is asked as the built-in corpus asks, a fine-tuned one as a user; the answer is greedy.
It is right if the first `a + b = N` of it, or the first `Answer: N`, has the right N.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.components.saved_steps import step_to_begin_from
from titan_motif.corpus.sums import NUM_ASKED, question, split_sums
from titan_motif.evaluation.chat import ChatPrompts
from titan_motif.evaluation.continuation import continue_prompts
from titan_motif.evaluation.loading import load_model, tokenizer_folder_of
from titan_motif.evaluation.next_token import Sampling

MAX_NEW_TOKENS = 24
BATCH = 100
_RESULT = re.compile(r"(?:=|Answer:)\s*(-?\d+)")


class Accuracy(NamedTuple):
    """Of questions that are right or wrong."""

    num_right: int
    num_asked: int

    @property
    def share(self) -> float:
        """Of the questions, those that were answered rightly, from 0 to 1."""
        return self.num_right / self.num_asked

    @property
    def standard_error(self) -> float:
        """Of the share, as of independent questions."""
        return (self.share * (1 - self.share) / self.num_asked) ** 0.5

    def __str__(self) -> str:
        told = f"{100 * self.share:.1f}% +- {100 * self.standard_error:.1f}"
        return f"{told} ({self.num_right} of {self.num_asked})"


def is_right(text: str, a: int, b: int) -> bool:
    """Return whether the first result that a text names is that of a + b."""
    found = _RESULT.search(text)
    return found is not None and int(found[1]) == a + b


def ask_sums(checkpoint: Path, as_chat: bool) -> Accuracy:
    """Return how many of the held-out sums a model gets right.

    Args:
        checkpoint: a step, an exported directory, or a run's checkpoint folder: its newest step
        as_chat: ask as a user, in the tokenizer's chat template; else as the built-in corpus does
    Raises: ValueError, one line, for a checkpoint that cannot be read
    """
    checkpoint = Path(step_to_begin_from(checkpoint))
    folder = tokenizer_folder_of(checkpoint)
    tokenizer, chat = load_tokenizer(folder), ChatPrompts(folder)
    model = load_model(checkpoint)
    held_out = split_sums()[1][:NUM_ASKED]
    prompts = []
    for a, b in held_out:
        if as_chat:
            prompts.append(chat.tokens([{"role": "user", "content": question(a, b)}]))
        else:
            text = f"Question: {question(a, b)}\n"
            prompts.append(tokenizer.encode(text))
    stops = {tokenizer.end_id, *({chat.end_of_turn()} - {None})}
    num_right = 0
    for begin in range(0, len(held_out), BATCH):
        rows = continue_prompts(
            model,
            prompts[begin : begin + BATCH],
            Sampling(temperature=0),
            MAX_NEW_TOKENS,
            stop_tokens=stops,
        )
        for row, (a, b) in zip(rows, held_out[begin : begin + BATCH], strict=True):
            num_right += is_right(tokenizer.tokenizer.decode(row.tokens), a, b)
    return Accuracy(num_right, len(held_out))


def main(argv: Sequence[str]) -> int:
    """Print a line for each checkpoint; the first is asked both ways, and the better one counts."""
    parser = argparse.ArgumentParser(prog="python -m titan_motif.evaluation.sums")
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--base", action="store_true", help="ask as the corpus does, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    found = {}
    try:
        for checkpoint in options.checkpoints:
            ways = (True, False) if options.base else (True,)
            found[checkpoint] = max(ask_sums(checkpoint, as_chat) for as_chat in ways)
            print(f"held-out sums: {found[checkpoint]}  {checkpoint}", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        table = {str(name): one._asdict() for name, one in found.items()}
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
