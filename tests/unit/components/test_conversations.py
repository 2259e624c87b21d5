"""Rows as conversations: what is read of them, and every kind of row that holds none."""

import json

import pytest

from titan_motif.components.sft.conversations import (
    Conversation,
    read_conversation,
    special_token_in,
)

ASK = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}


def test_a_conversation_is_read_as_templates_expect_it():
    answer = {"role": "assistant", "content": None, "thinking": "Add.", "tool_calls": [CALL]}
    as_text = CALL["function"] | {"arguments": json.dumps({"a": 1})}
    messages = [
        {"role": "system", "content": "Be brief."},
        ASK,
        answer,
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "", "reasoning": "", "tool_calls": [as_text]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4", "name": "add"},
        {"role": "assistant", "content": "4", "tool_calls": []},
    ]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    row = {"messages": messages, "tools": [{"name": "add"}], "source": "made"}
    found = read_conversation(row)
    assert found == Conversation(
        [
            {"role": "system", "content": "Be brief."},
            ASK,
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "Add.",
                "tool_calls": [call],
            },
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            {"role": "tool", "content": "4", "name": "add"},
            {"role": "assistant", "content": "4"},
        ],
        [{"name": "add"}],
    )
    without = read_conversation(row, reasoning="drop")
    assert "reasoning_content" not in without.messages[2]
    assert read_conversation({"chat": [ASK, ANSWER]}, field="chat") == Conversation([ASK, ANSWER])


def test_calls_keep_what_they_have_beside_name_and_arguments():
    nested = {"id": "1", "function": {"arguments": '{"a": 1}', "name": "add", "strict": True}}
    flat = {"id": "2", "name": "add", "index": 0}
    answer = {"role": "assistant", "content": "", "tool_calls": [nested, flat]}
    found = read_conversation({"messages": [ASK, answer]})
    assert found.messages[1]["tool_calls"] == [
        {
            "id": "1",
            "type": "function",
            "function": {"arguments": {"a": 1}, "name": "add", "strict": True},
        },
        {
            "id": "2",
            "index": 0,
            "type": "function",
            "function": {"name": "add", "arguments": {}},
        },
    ]


def test_empty_turns_and_several_systems_are_conversations():
    system = {"role": "system", "content": ""}
    empty = [system, {"role": "user", "content": ""}, {"role": "assistant", "content": ""}, system]
    assert read_conversation({"messages": [*empty, ASK, ANSWER]}) == Conversation(
        [*empty, ASK, ANSWER]
    )


def of(*messages: object) -> dict:
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "2 + 2 = 4"}, "no field 'messages'; its fields are text"),
        ({"\ud800": 1}, "no field 'messages'; its fields are \\ud800"),
        ({"messages": None}, "the field 'messages' is null; a list of messages is needed"),
        (
            of({"role": "user", "content": "a\ufdd0b"}, ANSWER),
            "message 1 has U+FDD0, which is no character: what is learnt is marked with it",
        ),
        (of(ASK, ANSWER | {"reasoning": "\ufdd0\ufdd1"}), "message 2 has U+FDD0, which is no"),
        (of(ASK, ANSWER | {"name": ("\ufdd1",)}), "message 2 has U+FDD1, which is no character"),
        (
            of(ASK, ANSWER | {"tool_calls": [{"name": "f", "arguments": r'{"a": "\ufdd0"}'}]}),
            "message 2 has U+FDD0, which is no character",
        ),
        (of(ASK, ANSWER) | {"tools": [{"\ufdd1": 1}]}, "the field 'tools' has U+FDD1, which is no"),
        ({"messages": "2 + 2?"}, "the field 'messages' is str; a list of messages is needed"),
        (of(), "the field 'messages' is empty"),
        (of(ASK, "4"), "message 2 is str; an object with role and content is needed"),
        (of({"content": "2 + 2?"}, ANSWER), "message 1 has no role"),
        (of({"role": "human", "content": "?"}, ANSWER), "message 1 has the role 'human'; one of"),
        (of(ASK, {"role": "assistant"}), "message 2 has no content"),
        (of({"role": "user", "content": 4}, ANSWER), "the field 'content' is int; text is needed"),
        (
            of({"role": "user", "content": [{"type": "image"}]}, ANSWER),
            "the field 'content' is list; text is needed",
        ),
        (of({"role": "user", "content": "\ud83d"}, ANSWER), "has half of a surrogate pair"),
        (of(ASK), "no message is the assistant's: there is nothing to learn"),
        (of(ASK, ANSWER, ASK), "the last message is the user's: nothing answers it"),
        (of(ANSWER), "message 1 is the assistant's, and nobody has asked anything"),
        (
            of({"role": "system", "content": ""}, ANSWER),
            "message 2 is the assistant's, and nobody has asked anything",
        ),
        (
            of(ASK, {"role": "tool", "content": "4"}, ANSWER),
            "message 2 is a tool's, and no tool was called",
        ),
        (
            of(ASK | {"tool_calls": [CALL]}, ANSWER),
            "message 1 has tool_calls, and its role is user",
        ),
        (of(ASK, ANSWER | {"tool_calls": {"a": 1}}), "message 2 has tool_calls that are dict"),
        (
            of(ASK, ANSWER | {"tool_calls": [{"id": 1}]}),
            "has a tool call without a function's name",
        ),
        (
            of(ASK, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]}),
            "message 2 calls 'f' with arguments that are no JSON",
        ),
        (
            of(ASK, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}),
            "message 2 calls 'f' with list; an object is needed",
        ),
        (
            of(ASK, ANSWER | {"tool_calls": [{"function": {"name": "f\udc00"}}]}),
            "the field 'tool_calls' has half of a surrogate pair",
        ),
        (
            of(ASK, ANSWER | {"tool_calls": [{"function": {"name": "\ud800", "arguments": "{"}}]}),
            "message 2 calls '\\ud800' with arguments that are no JSON",
        ),
        (
            of(ASK, ANSWER | {"tool_calls": [{"name": "f", "arguments": f'{{"a": {"[" * 200}'}]}),
            "message 2 calls 'f' with arguments that are no JSON",
        ),
        (
            of(
                ASK,
                ANSWER
                | {"tool_calls": [{"name": "f", "arguments": f'{{"a": {"[" * 200}{"]" * 200}}}'}]},
            ),
            "message 2 calls 'f' with arguments nested more than 100 deep",
        ),
        (of(ASK, ANSWER | {"thinking": 5}), "the field 'thinking' is int; text is needed"),
        (of(ASK | {"reasoning": "Hm."}, ANSWER), "message 1 has reasoning, and its role is user"),
        (of(ASK, ANSWER) | {"tools": {"name": "f"}}, "the field 'tools' is no list of objects"),
    ],
)
def test_a_row_that_holds_none_is_told_why(row: dict, reason: str):
    found = read_conversation(row)
    assert isinstance(found, str)
    assert reason in found
    assert "\n" not in found


def test_special_tokens_are_found_wherever_a_template_may_print_a_text():
    tokens = frozenset({"<|end|>"})
    assert special_token_in(Conversation([ASK, ANSWER], [{"name": "f"}]), tokens) is None
    call = {"function": {"name": "f", "arguments": {"a": {"b": ["<|end|>"]}}}}
    for conversation in (
        Conversation([{"role": "user", "content": "a<|end|>b"}, ANSWER]),
        Conversation([ASK, ANSWER | {"reasoning_content": "<|end|>"}]),
        Conversation([ASK, ANSWER | {"tool_calls": [call]}]),
        Conversation([ASK, ANSWER], [{"<|end|>": "f"}]),
        Conversation([ASK, ANSWER], [{"f": [("a", "<|end|>")]}]),
    ):
        assert special_token_in(conversation, tokens) == "<|end|>"
        assert special_token_in(conversation, frozenset()) is None
