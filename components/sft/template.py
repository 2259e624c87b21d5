"""A chat template: conversations as text, as tokens, and which of them the assistant wrote.

A template is a Jinja text that a tokenizer brings along. It comes with data of others, so it runs
in a sandbox, in a process of its own (`template_process.py`), and sees what transformers shows it:
messages, tools, the special tokens by their names, `raise_exception`, `tojson`; but not
`strftime_now`, with which the same data would give other tokens each day. What the assistant wrote
is what stands in `{% generation %}` blocks; in a template without them, what an assistant's message
adds to the conversation before it.

Whatever a template does to fail, of any exception, is one line that says so, and so is that it
takes more time or memory than a conversation can need.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from titan_motif.components.foreign_files import inside, read_text
from titan_motif.components.preparation.foreign_tokenizer import (
    SETTINGS,
    TOKENIZER,
    read_checked,
    telling,
    tokenizer_settings,
)
from titan_motif.components.preparation.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS
from titan_motif.components.sft.conversations import MARKS, Conversation, mark_in
from titan_motif.components.sft.template_client import RenderProblem, TemplateClient

TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 1_000_000
_GROUP_CHARACTERS = 200_000
_GROUP_CONVERSATIONS = 256
"""Encoded at once, on all cores: bounds what memory is needed beside the longest one."""
_BEGIN, _END = MARKS

Span = tuple[int, int]
"""Where a stretch of a text begins and ends, in characters."""


class TemplateProblem(ValueError):
    """A conversation that a template does not render, in one line."""


@dataclass(frozen=True)
class Sample:
    """A conversation as tokens."""

    tokens: np.ndarray  # (length,) integers
    is_learnt: np.ndarray  # (length,) bool; whether the assistant wrote the token


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: its own special tokens are read as such
        file:      where the tokenizer was read, for what is told of it
        names:     special tokens by their names, as tokenizer_config.json has them
    Raises: ValueError if the text is no template
    """

    def __init__(
        self, text: str, tokenizer: Tokenizer, file: Path, names: dict[str, Any], origin: str
    ) -> None:
        self.text, self.tokenizer, self.file = text, tokenizer, file
        self.names, self.origin = names, origin
        try:
            self._template = TemplateClient(text, MARKS)
        except RenderProblem as problem:
            raise ValueError(f"{origin}: no chat template ({problem})") from None
        self.marks_generation = self._template.marks_generation

    @property
    def sha256(self) -> str:
        """Of its text: what tells one template from another."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def special_tokens(self) -> frozenset[str]:
        """The tokens that no text of a conversation may hold."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def prompt(self, conversation: Conversation) -> str:
        """Return a conversation as text that the assistant is to go on with."""
        return self._render(conversation, add_generation_prompt=True)[0]

    def render(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """Return a conversation as text, and what of it the assistant wrote.

        Raises: TemplateProblem
        """
        text, spans = self._render(conversation)
        return text, spans if self.marks_generation else self._spans_by_turns(conversation, text)

    def encode(self, conversation: Conversation) -> Sample:
        """Return a conversation as tokens.

        Raises: TemplateProblem
        """
        (sample,) = self.encode_all([conversation])
        if isinstance(sample, TemplateProblem):
            raise sample
        return sample

    def text_tokens(self, text: str) -> list[int]:
        """Return the tokens of what was rendered; ValueError if the tokenizer fails on it."""
        with telling(self.file):
            return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_all(
        self, conversations: Iterable[Conversation]
    ) -> Iterator[Sample | TemplateProblem]:
        """Yield each conversation as tokens, or what is wrong with it; some are taken ahead.

        Raises: ValueError, one line, if the tokenizer fails on a text
        """
        group: list[tuple[str, list[Span]] | TemplateProblem] = []
        characters = 0
        for conversation in conversations:
            try:
                text, spans = self.render(conversation)
            except TemplateProblem as problem:
                text, found = "", problem
            else:
                found = text, spans
            if characters + len(text) > _GROUP_CHARACTERS or len(group) == _GROUP_CONVERSATIONS:
                yield from self._encode_group(group)
                group, characters = [], 0
            group.append(found)
            characters += len(text)
        yield from self._encode_group(group)

    def _encode_group(
        self, group: Sequence[tuple[str, list[Span]] | TemplateProblem]
    ) -> list[Sample | TemplateProblem]:
        texts = [one[0] for one in group if not isinstance(one, TemplateProblem)]
        with telling(self.file):
            encodings = iter(self.tokenizer.encode_batch(texts, add_special_tokens=False))
        return [
            one if isinstance(one, TemplateProblem) else _sample(next(encodings), one[1])
            for one in group
        ]

    def _render(
        self, conversation: Conversation, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        mark = mark_in([conversation.messages, conversation.tools])
        if mark is not None:
            raise TemplateProblem(f"a text has {mark}")
        values = {
            **self.names,
            "messages": conversation.messages,
            "tools": conversation.tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return _unmark(self._template.render(values))
        except RenderProblem as problem:
            raise TemplateProblem(str(problem)) from None

    def _spans_by_turns(self, conversation: Conversation, text: str) -> list[Span]:
        """Return what each assistant's message adds to the conversation before it."""
        spans = []
        messages, tools = conversation
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.prompt(Conversation(messages[:number], tools))
            after, _ = self._render(Conversation(messages[: number + 1], tools))
            if not (after.startswith(before) and text.startswith(after)):
                raise TemplateProblem(
                    f"the template renders the conversation up to message {number + 1} otherwise "
                    "than within the whole, so that what the assistant wrote cannot be told: "
                    "{% generation %} and {% endgeneration %} around it would"
                )
            spans.append((len(before), len(after.rstrip("\n"))))
        return spans


def load_template(folder: str | Path, file: str | Path = "") -> ChatTemplate:
    """Return the chat template of a tokenizer's folder, or the one in a file.

    The folder's own is chat_template.jinja, or what tokenizer_config.json has; ours where it has
    none and knows the tokens of ours.
    Raises: ValueError if there is none, or no tokenizer
    """
    folder = Path(folder)
    tokenizer, settings = read_checked(folder), tokenizer_settings(folder)
    text, origin = _template_text(folder, settings, file)
    if text is None:
        missing = next((x for x in SPECIAL_TOKENS if tokenizer.token_to_id(x) is None), None)
        if missing is not None:
            raise ValueError(
                f"{folder}: has no chat template, and its tokenizer lacks {missing}, which ours "
                "needs; name a file with one"
            )
        text, origin = CHAT_TEMPLATE, "the built-in template"
    names = {name: _content(settings[name]) for name in settings if name.endswith("_token")}
    return ChatTemplate(text, tokenizer, folder / TOKENIZER, names, origin)


def _template_text(
    folder: Path, settings: dict[str, Any], file: str | Path
) -> tuple[str | None, str]:
    for path in (Path(file) if file else None, folder / TEMPLATE_FILE):
        if path is not None and (file or path.is_file()):
            try:
                own = path if file else inside(folder, TEMPLATE_FILE)
                return read_text(own, MAX_TEMPLATE_BYTES), str(path)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path}: cannot be read as a template ({error})") from None
    found, origin = settings.get("chat_template"), str(folder / SETTINGS)
    if isinstance(found, list):  # several by their names
        named = [x for x in found if isinstance(x, dict) and x.get("name") == "default"]
        found = named[0].get("template") if named else None
    if not isinstance(found, str | None):
        raise ValueError(f"{origin}: chat_template is {type(found).__name__}; a text is needed")
    if found is not None and len(found) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"{origin}: chat_template is longer than {MAX_TEMPLATE_BYTES:,}")
    return found, origin


def _content(token: Any) -> Any:
    """Return a special token's text: some tokenizers have an object with settings."""
    return token["content"] if isinstance(token, dict) and "content" in token else token


_MARKED_BY_ITSELF = "the template itself writes U+FDD0 or U+FDD1, which mark what is learnt"


def _unmark(marked: str) -> tuple[str, list[Span]]:
    """Return a text without its marks, and where they stood."""
    first, *rest = marked.split(_BEGIN)
    parts, spans, length = [first], [], len(first)
    for piece in rest:
        inside, end, after = piece.partition(_END)
        if not end or _END in after:
            raise TemplateProblem(_MARKED_BY_ITSELF)
        spans.append((length, length + len(inside)))
        parts += [inside, after]
        length += len(inside) + len(after)
    if _END in first:
        raise TemplateProblem(_MARKED_BY_ITSELF)
    return "".join(parts), spans


def _sample(encoding: Any, spans: Sequence[Span]) -> Sample:
    """Return an encoding's tokens, those marked that have a character of a span."""
    tokens = np.array(encoding.ids, dtype=np.int64)
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    is_learnt = np.zeros(len(tokens), dtype=bool)
    for begin, end in spans:
        is_learnt |= (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    return Sample(tokens, is_learnt)
