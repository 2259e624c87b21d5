"""How much of a text repeats itself: runs of words, lines, single characters.

After the rules of Gopher's data (https://arxiv.org/abs/2112.11446, appendix A), for answers.
"""

import re
from collections.abc import Sequence

import numpy as np

from titan_motif.components.sft.words import run_hashes

MIN_WORDS = 30
"""Of a text whose runs of words are judged: in a shorter one a refrain is no loop."""
MIN_LINES = 6
"""Of a text whose lines are judged."""
_WORDS_OF_A_RUN = 3
_SHORT_LINE = 10
"""Shorter lines, such as a lone bracket of a program, are not counted."""
_RUN = re.compile(r"(\S)\1{9,}")


def repeated_runs(words: Sequence[str]) -> float:
    """Return the share of a text's runs of words that came before in it; 0 of a short text."""
    if len(words) < MIN_WORDS:
        return 0.0
    hashes = run_hashes(words, _WORDS_OF_A_RUN)
    return 1 - len(np.unique(hashes)) / len(hashes)


def repeated_lines(text: str) -> float:
    """Return the share of a text's lines that came before in it; 0 of a few lines."""
    lines = [line for line in map(str.strip, text.splitlines()) if len(line) >= _SHORT_LINE]
    return 1 - len(set(lines)) / len(lines) if len(lines) >= MIN_LINES else 0.0


def longest_character_run(text: str) -> tuple[str, int]:
    """Return the character that stands most often in a row, and how often; 0 if under 10 times."""
    runs = ((found.group(1), len(found.group())) for found in _RUN.finditer(text))
    return max(runs, key=lambda run: run[1], default=("", 0))
