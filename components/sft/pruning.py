"""Which conversations to leave out of a set, by rules that each look at one of them alone.

The order of all rules, which is that of `RULES`: those of a single conversation come before those
that compare, so that nothing is left out for repeating what is left out itself.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from titan_motif.components.sft.arithmetic import wrong_sums
from titan_motif.components.sft.conversations import REASONING, Conversation, Message
from titan_motif.components.sft.expected_answer import check_answer
from titan_motif.components.sft.repetition import (
    longest_character_run,
    repeated_lines,
    repeated_runs,
)
from titan_motif.components.sft.words import normalized, trimmed, words_and_signs_of, words_of

# ASSUMPTION: the report leaves out what is redundant or of low utility by diversity, coherence and
# fidelity, and names no measure; the rules, and where they draw the line, are ours.
RULES = {
    "bad": "holds no conversation",
    "empty": "an answer without text",
    "length": "an answer too short or too long",
    "repetition": "the assistant repeats itself",
    "answer": "another result than expected",
    "arithmetic": "a sum that is wrong",
    "duplicate": "the same conversation came before",
    "question": "the same first question came before",
    "near_duplicate": "nearly the same conversation is kept",
    "loss": "a model finds it too easy, or incoherent",
}
"""Name -> what it leaves out, in the order in which they are asked: a row is counted once, under
the first that drops it."""

SHINGLE_WORDS = 5
"""Of the runs of words whose share in common makes conversations near duplicates."""


@dataclass(frozen=True)
class PruneRules:
    """Which rules are asked, and where they draw the line.

    0 turns one off, and so do --no-... and an empty name of a field.
    """

    bad_samples: Literal["refuse", "drop"] = "refuse"
    """What becomes of a row that holds no conversation: nothing is made, or it is left out."""
    empty_answers: bool = True
    """Drop conversations with an answer without text (a message that calls tools is no answer)."""
    min_words: int = 0
    """Of every answer; off: a number alone can be right."""
    max_words: int = 10_000
    """Of every answer."""
    min_characters: int = 0
    """Of every answer."""
    max_characters: int = 60_000
    """Of every answer."""
    max_repeated_runs: float = 0.6
    """Largest share of runs of three words that came before in the same text, which is an answer or
    its reasoning. Of the built-in corpus, 3,400 texts of people and programs, none has more."""
    max_repeated_lines: float = 0.5
    """Largest share of lines that came before in the same text; of the built-in corpus: 0.4."""
    max_character_run: int = 100
    """Most times that a character may stand in a row; of the built-in corpus: 79, in rulers."""
    answer_field: str = "answer"
    """Field of a row with the result that its last answer has to come to; empty turns it off."""
    arithmetic: bool = True
    """Drop conversations whose answers state a sum (+, -, x, *) that is wrong."""
    duplicates: bool = True
    """Drop exact duplicates: all messages and tools the same, but for white space where lines end,
    line ends, and forms of characters (NFC). The first stays."""
    questions: bool = False
    """Drop conversations whose first user's turn is that of an earlier one in the same sense."""
    near_duplicates: float = 0.8
    """Jaccard similarity of runs of five words and signs, system messages aside, from which of two
    conversations one is dropped."""
    keep: Literal["first", "longest"] = "first"
    """Which of near duplicates stays."""

    def check(self) -> None:
        """Raise ValueError, one line, naming an option that is out of its range."""
        for name in ("min_words", "max_words", "min_characters", "max_characters"):
            if getattr(self, name) < 0:
                raise _out_of_range(name, getattr(self, name), "0 (off) or more")
        if self.max_character_run and self.max_character_run < 10:
            raise _out_of_range("max_character_run", self.max_character_run, "0 (off), 10 or more")
        for name in ("max_repeated_runs", "max_repeated_lines", "near_duplicates"):
            if not 0 <= getattr(self, name) <= 1:
                raise _out_of_range(name, getattr(self, name), "0 (off) to 1")
        for unit in ("words", "characters"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if most and least > most:
                raise _out_of_range(f"min_{unit}", least, f"at most --max-{unit}, {most},")

    def asked(self) -> set[str]:
        """Return the rules that are on, but that of the loss, which is a model's."""
        switches = {
            "bad": True,
            "empty": self.empty_answers,
            "length": any(
                (self.min_words, self.max_words, self.min_characters, self.max_characters)
            ),
            "repetition": any(
                (self.max_repeated_runs, self.max_repeated_lines, self.max_character_run)
            ),
            "answer": self.answer_field,
            "arithmetic": self.arithmetic,
            "duplicate": self.duplicates,
            "question": self.questions,
            "near_duplicate": self.near_duplicates,
        }
        return {rule for rule, switch in switches.items() if switch}


class Finding(NamedTuple):
    """Why a conversation is left out."""

    rule: str
    detail: str


class Examination(NamedTuple):
    """What the rules of a single conversation found."""

    finding: Finding | None
    is_checked: bool
    """Whether its result could be compared with the expected one."""


def examine(conversation: Conversation, row: dict[str, Any], rules: PruneRules) -> Examination:
    """Ask the rules from `empty` to `arithmetic`, in their order."""
    answers = [
        (number, message["content"])
        for number, message in enumerate(conversation.messages, start=1)
        if message["role"] == "assistant" and not message.get("tool_calls")
    ]
    verdict, differing = "unknown", ""
    if rules.answer_field and row.get(rules.answer_field) is not None and answers:
        verdict, differing = check_answer(row[rules.answer_field], answers[-1][1])
    findings = _findings(conversation, answers, rules, differing)
    return Examination(next(findings, None), verdict != "unknown")


def _findings(
    conversation: Conversation, answers: list[tuple[int, str]], rules: PruneRules, differing: str
) -> Iterator[Finding]:
    if rules.empty_answers:
        for number, text in answers:
            if not text.strip():
                yield Finding("empty", f"message {number} has no text")
    for number, text in answers:
        for problem in _length_problems(text, rules):
            yield Finding("length", f"message {number} has {problem}")
    for number, name, text in _said(conversation.messages):
        for problem in _repetitions(text, rules):
            place = f"message {number}" if name == "content" else f"the reasoning of {number}"
            yield Finding("repetition", f"{place}: {problem}")
    if differing:
        yield Finding("answer", differing)
    if rules.arithmetic:
        for number, text in answers:
            for problem in wrong_sums(text):
                yield Finding("arithmetic", f"message {number}: {problem}")


def _length_problems(text: str, rules: PruneRules) -> Iterator[str]:
    if rules.min_words or rules.max_words:
        yield from _bounds(len(words_of(text)), "words", rules.min_words, rules.max_words)
    count = len(text.strip())
    yield from _bounds(count, "characters", rules.min_characters, rules.max_characters)


def _bounds(count: int, unit: str, least: int, most: int) -> Iterator[str]:
    if count < least:
        yield f"{count:,} {unit}, under {least:,}"
    if most and count > most:
        yield f"{count:,} {unit}, over {most:,}"


def _said(messages: list[Message]) -> Iterator[tuple[int, str, str]]:
    """Yield what the assistant said and thought: number of the message, field, text."""
    for number, message in enumerate(messages, start=1):
        if message["role"] == "assistant":
            for name in ("content", REASONING[0]):
                if message.get(name):
                    yield number, name, message[name]


def _repetitions(text: str, rules: PruneRules) -> Iterator[str]:
    limit = rules.max_repeated_runs
    if limit and (share := repeated_runs(words_of(normalized(text)))) > limit:
        yield f"{share:.0%} of its runs of three words came before, over {limit:.0%}"
    limit = rules.max_repeated_lines
    if limit and (share := repeated_lines(text)) > limit:
        yield f"{share:.0%} of its lines came before, over {limit:.0%}"
    if rules.max_character_run:
        character, count = longest_character_run(text)
        if count > rules.max_character_run:
            yield f"{character!r} {count:,} times in a row, over {rules.max_character_run:,}"


def conversation_key(conversation: Conversation) -> bytes:
    """Return a hash of all that a conversation says, trimmed."""
    content = [conversation.messages, conversation.tools]
    return _digest(json.dumps(_trimmed(content), sort_keys=True, default=str))


def question_key(conversation: Conversation) -> bytes:
    """Return a hash of the first user's turn, trimmed; of what came first if there is none."""
    messages = conversation.messages
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return _digest(trimmed(asked[0] if asked else messages[0]["content"]))


def compared_words(conversation: Conversation) -> list[str]:
    """Return the words and signs that make near duplicates.

    Those of system messages and of tools' descriptions are left out: long ones that many
    conversations share would make these alike, whatever is said.
    """
    texts = []
    for message in conversation.messages:
        if message["role"] != "system":
            texts += [message.get(REASONING[0], ""), message["content"]]
            if message.get("tool_calls"):  # without their ids, which chance has made
                called = [call["function"] for call in message["tool_calls"]]
                texts.append(json.dumps(called, ensure_ascii=False, default=str))
    return words_and_signs_of("\n".join(texts))


def _trimmed(value: Any) -> Any:
    if isinstance(value, str):
        return trimmed(value)
    if isinstance(value, dict):
        return {name: _trimmed(inner) for name, inner in value.items()}
    return [_trimmed(inner) for inner in value] if isinstance(value, list) else value


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _out_of_range(name: str, value: Any, needed: str) -> ValueError:
    return ValueError(f"--{name.replace('_', '-')} is {value}; {needed} is needed")
