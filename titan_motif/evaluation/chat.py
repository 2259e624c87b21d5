"""Conversations as the text that a model was trained on: the tokenizer's chat template."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

_MARK = "titan motif"
"""Content that no template has by itself."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    """system, user, assistant, or what else the template knows."""
    content: str


def render_chat(
    tokenizer_folder: Path, messages: Sequence[Message], add_generation_prompt: bool = True
) -> str:
    """Return a conversation as text, with the beginning of the assistant's turn at its end.

    The template is chat_template.jinja or "chat_template" in tokenizer_config.json, and runs in
    Jinja's sandbox, as in transformers.

    Raises: ValueError, one line, without a template, and for what the template refuses
    """
    template, tokens = _template(tokenizer_folder)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **tokens
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"{tokenizer_folder}: the chat template failed: {error}") from None


def end_of_turn(tokenizer_folder: Path, tokenizer: Tokenizer) -> int | None:
    """Return the special token that ends the assistant's turn, None if the template has none.

    It is the first one that the template puts after what the assistant has said.
    """
    turns: list[Message] = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": _MARK},
    ]
    _, _, after = render_chat(tokenizer_folder, turns, False).rpartition(_MARK)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    found = encode_chat(tokenizer, after)
    return next((token for token in found if token in special), None)


def encode_chat(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a rendered conversation: its special tokens are tokens, not text."""
    before, tokenizer.encode_special_tokens = tokenizer.encode_special_tokens, False
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = before


def _template(folder: Path) -> tuple[str, dict[str, str]]:
    """Return a folder's chat template, and the special tokens that it may name."""
    file, path = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        template = path.read_text(encoding="utf-8") if path.is_file() else None
        template = config.get("chat_template") if template is None else template
        named = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None
    if not isinstance(template, str):
        raise ValueError(f"{file}: has no chat_template; --chat needs one")
    contents = {n: t["content"] if isinstance(t, dict) else t for n, t in named.items()}
    return template, {n: t for n, t in contents.items() if isinstance(t, str)}
