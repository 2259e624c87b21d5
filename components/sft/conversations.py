"""A conversation as a row of a data set holds it, and all that can be wrong with one.

    {"messages": [{"role": "user", "content": "2 + 2?"},
                  {"role": "assistant", "content": "4", "reasoning_content": "Two and two ..."}],
     "tools": [...]}

An assistant's message may have `tool_calls`, each {"function": {"name": ..., "arguments": ...}},
and its reasoning as `reasoning_content`, `reasoning` or `thinking`. What a template makes of other
fields is its own affair: they are handed over as they are.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from titan_motif.components.preparation.units import (
    TOO_DEEP,
    field_problem,
    nesting_problem,
    text_problem,
)

ROLES = ("system", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of the field in use; templates are given the first."""

MARKS = ("\ufdd0", "\ufdd1")
"""Before and after what the assistant wrote, in what a template renders until the places are known:
Unicode reserves them for a program's own use, so that no text has to have them."""

Message = dict[str, Any]


class Conversation(NamedTuple):
    """A conversation that can be learnt from."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


def read_conversation(
    row: dict[str, Any], reasoning: Literal["keep", "drop"] = "keep", field: str = "messages"
) -> Conversation | str:
    """Return the conversation of a row, or in words why it holds none."""
    if field not in row:
        return field_problem(list(row), field)
    messages = row[field]
    if not isinstance(messages, list):
        return f"the field {field!r} is {_kind(messages)}; a list of messages is needed"
    if not messages:
        return f"the field {field!r} is empty"
    for number, message in enumerate(messages, start=1):
        problem = _message_problem(message)
        if problem is not None:
            return f"message {number} {problem}"
    problem = _order_problem(messages) or _tools_problem(row.get("tools"))
    if problem is not None:
        return problem
    cleaned = [_clean(message, reasoning) for message in messages]
    for number, message in enumerate(cleaned, start=1):
        if (mark := mark_in(message)) is not None:
            return f"message {number} has {mark}"
    if (mark := mark_in(row.get("tools"))) is not None:
        return f"the field 'tools' has {mark}"
    return Conversation(cleaned, row.get("tools"))


def special_token_in(conversation: Conversation, special_tokens: frozenset[str]) -> str | None:
    """Return the first special token that a text of a conversation holds, None if there is none.

    A template's result is read with special tokens in it, so that a text that holds one would end
    a turn, or begin another one.
    """
    if not special_tokens:
        return None
    for text in _texts([conversation.messages, conversation.tools]):
        for token in special_tokens:
            if token in text:
                return token
    return None


def mark_in(value: Any) -> str | None:
    """Return which of the marks a text within a value holds, in words; None if none does.

    The text would mark itself as learnt, and lose the characters.
    """
    for text in _texts(value):
        for mark in MARKS:
            if mark in text:
                return f"U+{ord(mark):04X}, which is no character: what is learnt is marked with it"
    return None


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts within a value, keys too: a template may print them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts([key, inner])
    elif isinstance(value, list | tuple):  # a map of a table is a list of pairs
        for inner in value:
            yield from _texts(inner)


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, dict):
        return f"is {_kind(message)}; an object with role and content is needed"
    role = message.get("role")
    if role is None:
        return "has no role"
    if role not in ROLES:
        return f"has the role {role!r}; one of {', '.join(ROLES)} is needed"
    calls = message.get("tool_calls")
    if calls is not None:
        if role != "assistant":
            return f"has tool_calls, and its role is {role}; the assistant calls tools"
        problem = _calls_problem(calls)
        if problem is not None:
            return problem
    content = message.get("content")
    if content is None and not calls:
        return "has no content"
    texts = {"content": content} if content is not None else {}
    texts |= {name: message[name] for name in REASONING if message.get(name) is not None}
    for name, text in texts.items():
        problem = text_problem(text, name)
        if problem is not None:
            return f"is wrong: {problem}"
    if role != "assistant" and any(name in texts for name in REASONING):
        return f"has reasoning, and its role is {role}; the assistant reasons"
    return None


def _calls_problem(calls: Any) -> str | None:
    if not isinstance(calls, list):
        return f"has tool_calls that are {_kind(calls)}; a list is needed"
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return "has a tool call without a function's name"
        arguments = function.get("arguments", {})
        called = f"calls {function['name']!a}"
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except RecursionError:
                return f"{called} with arguments {TOO_DEEP}"
            except ValueError:
                return f"{called} with arguments that are no JSON"
        if not isinstance(arguments, dict):
            return f"{called} with {_kind(arguments)}; an object is needed"
        if (problem := nesting_problem(arguments)) is not None:
            return f"{called} with arguments {problem}"
        problems = (text_problem(text, "tool_calls") for text in _texts([call, arguments]))
        problem = next(filter(None, problems), None)
        if problem is not None:
            return f"is wrong: {problem}"
    return None


def _order_problem(messages: list[Message]) -> str | None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        return "no message is the assistant's: there is nothing to learn"
    if roles[-1] != "assistant":
        return f"the last message is the {roles[-1]}'s: nothing answers it"
    called = False
    for number, (role, before) in enumerate(zip(roles, ["", *roles], strict=False), start=1):
        if role == "assistant" and before in ("", "system"):
            return f"message {number} is the assistant's, and nobody has asked anything"
        if role == "tool" and not called:
            return f"message {number} is a tool's, and no tool was called"
        called = bool(messages[number - 1].get("tool_calls")) or (called and role == "tool")
    return None


def _tools_problem(tools: Any) -> str | None:
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return "the field 'tools' is no list of objects"
    for text in _texts(tools):
        problem = text_problem(text, "tools")
        if problem is not None:
            return problem
    return None


def _clean(message: Message, reasoning: str) -> Message:
    """Return a message as templates expect it: one name for reasoning, arguments as objects."""
    cleaned = {
        name: value
        for name, value in message.items()
        if name not in REASONING and value is not None and not (name == "tool_calls" and not value)
    }
    cleaned["content"] = cleaned.get("content") or ""
    if reasoning == "keep":
        found = next((message[name] for name in REASONING if message.get(name)), None)
        if found is not None:
            cleaned[REASONING[0]] = found
    if "tool_calls" in cleaned:
        cleaned["tool_calls"] = [_clean_call(call) for call in cleaned["tool_calls"]]
    return cleaned


def _clean_call(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call with its function in a field of its own, and what else it has, its id too."""
    if "function" not in call:
        own = {name: call[name] for name in ("name", "arguments") if name in call}
        call = {name: value for name, value in call.items() if name not in own} | {"function": own}
    function = call["function"]
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
