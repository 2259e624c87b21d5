"""The rows of many files, and which of them stay: what is kept in memory of each is small.

A row has its place, a hash or two, and a MinHash signature of 512 bytes; the sets of hashes that
near duplicates are verified by lie in a file.
"""

from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from titan_motif.components.preparation.units import BadLine
from titan_motif.components.sft.conversations import Conversation
from titan_motif.components.sft.minhash import NUM_HASHES, find_repeats, signature
from titan_motif.components.sft.pruning import (
    SHINGLE_WORDS,
    PruneRules,
    compared_words,
    conversation_key,
    examine,
    question_key,
)
from titan_motif.components.sft.words import run_hashes


class Drop(NamedTuple):
    """Why a row goes."""

    rule: str
    detail: str
    repeats: int | None = None
    """The row that it repeats."""


class Place(NamedTuple):
    """Where a row stands."""

    file: str
    line: int
    """From 1; in a table, the row."""


class Selection:
    """Takes rows in the order of their files, numbers them from 0, and tells which ones go.

    Args:
        spool: file for the sets of hashes, to be written; whoever made it removes it
    """

    def __init__(self, rules: PruneRules, spool: Path) -> None:
        self.rules = rules
        self.drops: dict[int, Drop] = {}
        self.bad_lines: list[BadLine] = []
        self.num_checked = 0
        """Rows whose result could be compared with an expected one."""
        self._files: list[str] = []
        self._file_of, self._lines = array("l"), array("q")
        self._seen: dict[tuple[str, bytes], int] = {}
        self._compared = array("q")
        """Rows that are searched for near duplicates."""
        self._ends, self._sizes = array("q", [0]), array("q")
        self._signatures = bytearray()
        self._path, self._spool = spool, spool.open("wb")

    def __len__(self) -> int:
        return len(self._lines)

    def place(self, number: int) -> Place:
        """Return the file and the line of a row, by its number."""
        return Place(self._files[self._file_of[number]], self._lines[number])

    def counts(self) -> Counter[str]:
        """Return how many rows each rule drops."""
        return Counter(drop.rule for drop in self.drops.values())

    def add_bad(self, line: BadLine) -> None:
        """Take a row that holds no conversation."""
        self.bad_lines.append(line)
        self.drops[self._number(line.file, line.line)] = Drop("bad", line.reason)

    def add(self, file: str, line: int, row: dict[str, Any], conversation: Conversation) -> None:
        """Take a row, and ask all rules but those that need the others."""
        number = self._number(file, line)
        finding, is_checked = examine(conversation, row, self.rules)
        self.num_checked += is_checked
        if finding is not None:
            self.drops[number] = Drop(*finding)
            return
        for rule, is_asked, key_of in (
            ("duplicate", self.rules.duplicates, conversation_key),
            ("question", self.rules.questions, question_key),
        ):
            if is_asked:
                first = self._seen.setdefault((rule, key_of(conversation)), number)
                if first != number:
                    self.drops[number] = Drop(rule, f"as {self._told(first)}", first)
                    return
        if self.rules.near_duplicates:
            self._keep_words(number, compared_words(conversation))

    @property
    def compared_bytes(self) -> int:
        """How large all sets are that near duplicates are searched in."""
        return 8 * self._ends[-1]

    def drop_near_duplicates(self, advance: Callable[[int], None] = lambda num_bytes: None) -> None:
        """Compare all that is left, once all rows were taken; `advance` is told of bytes done."""
        self._spool.close()
        if not self._compared:
            return
        shape = (len(self._compared), NUM_HASHES)
        signatures = np.frombuffer(self._signatures, dtype=np.uint32).reshape(shape)
        spooled, ends = np.memmap(self._path, dtype=np.uint64, mode="r"), self._ends
        order = np.arange(len(self._compared))
        if self.rules.keep == "longest":
            order = np.argsort(-np.array(self._sizes), kind="stable")
        repeats = find_repeats(
            signatures,
            lambda number: spooled[ends[number] : ends[number + 1]],
            self.rules.near_duplicates,
            order,
            lambda number: advance(8 * (ends[number + 1] - ends[number])),
        )
        for index, repeat in sorted(repeats.items()):
            kept = self._compared[repeat.of]
            detail = f"{repeat.similarity:.3f} like {self._told(kept)}"
            self.drops[self._compared[index]] = Drop("near_duplicate", detail, kept)

    def _number(self, file: str, line: int) -> int:
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        self._file_of.append(len(self._files) - 1)
        self._lines.append(line)
        return len(self._lines) - 1

    def _keep_words(self, number: int, words: list[str]) -> None:
        members = np.unique(run_hashes(words, SHINGLE_WORDS))
        if len(members):
            self._compared.append(number)
            self._sizes.append(len(words))
            self._signatures += signature(members).tobytes()
            self._spool.write(members.tobytes())
            self._ends.append(self._ends[-1] + len(members))

    def _told(self, number: int) -> str:
        file, line = self.place(number)
        return f"{file}, line {line}"
