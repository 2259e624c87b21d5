"""A chat template: conversations as text, as tokens, and which of them the assistant wrote.

A template is a Jinja text that a tokenizer brings along. It comes with data of others, so it runs
in a sandbox, and sees what transformers shows it: messages, tools, the special tokens by their
names, `raise_exception`, `tojson`; but not `strftime_now`, with which the same data would give
other tokens each day. What the assistant wrote is what stands in `{% generation %}` blocks; in a
template without them, what an assistant's message adds to the conversation before it.

Whatever a template does to fail, of any exception, is one line that says so. How long it takes is
not limited.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from titan_motif.components.preparation.tokenizer import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    read_tokenizer,
)
from titan_motif.components.sft.conversations import MARKS, Conversation, mark_in

TEMPLATE_FILE = "chat_template.jinja"
_BEGIN, _END = MARKS
_LONGEST_REASON = 300
"""Characters of what an exception says that are told."""

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
        names:     special tokens by their names, as tokenizer_config.json has them
    Raises: ValueError if the text is no template
    """

    def __init__(
        self, text: str, tokenizer: Tokenizer, names: dict[str, Any], origin: str = "template"
    ) -> None:
        self.text, self.tokenizer, self.names, self.origin = text, tokenizer, names, origin
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        try:
            text.encode()
            self._template = environment.from_string(text)
            tree = environment.parse(text)
        except Exception as error:  # of Python too, which compiles what Jinja makes of it
            raise ValueError(f"{origin}: no chat template ({_reason(error)})") from None
        self.marks_generation = _has_generation(tree)

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

    def encode_all(self, conversations: Sequence[Conversation]) -> list[Sample | TemplateProblem]:
        """Return each conversation as tokens, or what is wrong with it."""
        rendered: list[tuple[str, list[Span]] | TemplateProblem] = []
        for conversation in conversations:
            try:
                rendered.append(self.render(conversation))
            except TemplateProblem as problem:
                rendered.append(problem)
        texts = [one[0] for one in rendered if not isinstance(one, TemplateProblem)]
        encodings = iter(self.tokenizer.encode_batch(texts, add_special_tokens=False))
        return [
            one if isinstance(one, TemplateProblem) else _sample(next(encodings), one[1])
            for one in rendered
        ]

    def _render(
        self, conversation: Conversation, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        mark = mark_in([conversation.messages, conversation.tools])
        if mark is not None:
            raise TemplateProblem(f"a text has {mark}")
        try:
            marked = self._template.render(
                **self.names,
                messages=conversation.messages,
                tools=conversation.tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
            marked.encode()
        except Exception as error:  # a template is a program: it can raise any, MemoryError too
            raise TemplateProblem(_problem(error)) from None
        return _unmark(marked)

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
    tokenizer, settings = read_tokenizer(folder), _settings(folder)
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
    return ChatTemplate(text, tokenizer, names, origin)


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: no object of settings")
    return settings


def _template_text(
    folder: Path, settings: dict[str, Any], file: str | Path
) -> tuple[str | None, str]:
    for path in (Path(file) if file else None, folder / TEMPLATE_FILE):
        if path is not None and (file or path.is_file()):
            try:
                return path.read_text(encoding="utf-8"), str(path)
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: cannot be read as a template ({error})") from None
    found = settings.get("chat_template")
    if isinstance(found, list):  # several by their names
        found = next((x["template"] for x in found if x.get("name") == "default"), None)
    return found, str(folder / "tokenizer_config.json")


def _content(token: Any) -> Any:
    """Return a special token's text: some tokenizers have an object with settings."""
    return token["content"] if isinstance(token, dict) and "content" in token else token


_NESTED = "a {% generation %} block stands within another, which is learnt whole"


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: what stands within is the assistant's."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        if _has_generation(nodes.Scope(body)):
            parser.fail(_NESTED, line)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        inside = caller()
        if _BEGIN in inside:  # of a macro that is called within
            raise TemplateError(_NESTED)
        return f"{_BEGIN}{inside}{_END}"


def _has_generation(tree: nodes.Node) -> bool:
    return any(
        isinstance(block.call, nodes.Call) and isinstance(block.call.node, nodes.ExtensionAttribute)
        for block in tree.find_all(nodes.CallBlock)
    )


def _problem(error: Exception) -> str:
    """Return why a template did not render a conversation."""
    if isinstance(error, SecurityError):
        return f"the template does what a sandbox forbids ({_reason(error)})"
    if isinstance(error, UndefinedError) and error.message == "'strftime_now' is undefined":
        return (
            "the template calls strftime_now, which is not there: the same data would give other "
            "tokens each day; write a date in its place"
        )
    if isinstance(error, TemplateError):
        return f"the template refuses it: {_reason(error)}"
    if isinstance(error, UnicodeEncodeError):
        return "the template renders half of a surrogate pair, which is no character"
    return f"the template fails on it ({_reason(error)})"


def _reason(error: Exception) -> str:
    """Return what an exception says, in one line that can be printed."""
    if isinstance(error, TemplateSyntaxError):
        told = f"{error.message}, line {error.lineno}"
    elif isinstance(error, TemplateError):
        told = str(error.message)
    else:  # a SyntaxError would name a line of what Jinja made
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        told = f"{type(error).__name__}: {said}" if said else type(error).__name__
    told = " ".join(told.split())[:_LONGEST_REASON]
    return told.encode(errors="backslashreplace").decode()


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


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: Jinja's own sorts keys, and escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(str(message))
