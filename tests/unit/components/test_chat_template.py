"""Chat templates: text, tokens and what is learnt, beside transformers' own."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from titan_motif.components.preparation.tokenizer import CHAT_TEMPLATE
from titan_motif.components.sft import template as template_module
from titan_motif.components.sft.conversations import Conversation, read_conversation
from titan_motif.components.sft.template import TemplateProblem, load_template

WORDS = (
    "two",
    "plus",
    "naïve",
    "東京",
    "🙂🏽",
    "a\nb",
    " ",
    "",
    "\t",
    "x = {'a': 1}",
    "e\u0301",
    "<b>&",
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|user|>' if message.role == 'user' else '<|assistant|>' }}{{ message.content }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def conversations(num: int) -> list[Conversation]:
    """Conversations of all shapes: empty turns, tools, reasoning, several systems."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(6)))

    def answer() -> dict:
        message = {"role": "assistant", "content": text()}
        if draw.random() < 0.3:
            message["reasoning_content"] = text()
        return message

    found = []
    for _ in range(num):
        messages = [{"role": "system", "content": text()} for _ in range(draw.choice((0, 0, 1, 2)))]
        for _ in range(draw.randrange(1, 4)):
            messages.append({"role": "user", "content": text()})
            if draw.random() < 0.3:
                arguments = {"b": draw.random(), "a": [text(), None], "c": {"d": True}}
                call = {"function": {"name": "find", "arguments": arguments}}
                messages.append(answer() | {"tool_calls": [call] * draw.randrange(1, 3)})
                messages += [{"role": "tool", "content": text()}] * draw.randrange(1, 3)
            messages.append(answer())
            if draw.random() < 0.1:
                messages.append({"role": "system", "content": text()})
                messages += [{"role": "user", "content": ""}, answer()]
        tools = [{"name": "find", "description": text()}] if draw.random() < 0.3 else None
        read = read_conversation({"messages": messages, "tools": tools})
        assert isinstance(read, Conversation), read
        found.append(read)
    return found


@pytest.fixture
def with_template(tiny_tokenizer: Path, tmp_path: Path):
    """A folder with the tokenizer, and a template in a file of its own if one is given."""

    def make(template: str | None, **settings) -> Path:
        folder = tmp_path / "tokenizer"
        shutil.copytree(tiny_tokenizer, folder)
        config = json.loads((folder / "tokenizer_config.json").read_text()) | settings
        if template is not None:
            config.pop("chat_template")
            (folder / "chat_template.jinja").write_text(template)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return make


FORGETFUL = CHATML.replace("{{ message.content }}", "{{ message.content if loop.last }}")
OTHER = (
    "{{ bos_token if bos_token }}{%- for m in messages %}\n"
    "  {%- if m.role == 'assistant' %}\n"
    "    {%- generation %}{{ m.content | trim }}{{ eos_token }}{% endgeneration %}\n"
    "  {%- else %}\n"
    "    {{- '<|user|>' + m.content + (tools | tojson(indent=2) if tools else '') }}\n"
    "  {%- endif %}\n"
    "  {%- if loop.index > 9 %}{% break %}{% endif %}\n"
    "{%- endfor %}\n"
)


@pytest.mark.parametrize("template", [None, OTHER], ids=["ours", "another"])
def test_text_tokens_and_mask_are_those_of_transformers(with_template, template):
    from transformers import AutoTokenizer

    folder = with_template(template)
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_template(folder)
    assert ours.marks_generation
    seen = 0
    for conversation in conversations(200):
        told = {"tools": conversation.tools}
        expected = theirs.apply_chat_template(
            conversation.messages,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **told,
        )
        sample = ours.encode(conversation)
        assert sample.tokens.tolist() == expected["input_ids"]
        assert sample.is_learnt.astype(int).tolist() == expected["assistant_masks"]
        text = theirs.apply_chat_template(conversation.messages, tokenize=False, **told)
        assert ours.render(conversation)[0] == text
        prompted = theirs.apply_chat_template(
            conversation.messages, tokenize=False, add_generation_prompt=True, **told
        )
        assert ours.prompt(conversation) == prompted
        seen += int(sample.is_learnt.sum())
    assert seen > 2000


def test_what_is_learnt_is_what_the_assistant_wrote(tiny_tokenizer: Path):
    template = load_template(tiny_tokenizer)
    assert template.text == CHAT_TEMPLATE
    conversation = Conversation(
        [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "four", "reasoning_content": "Add."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": ""},
        ]
    )
    text, spans = template.render(conversation)
    assert [text[begin:end] for begin, end in spans] == [
        "<think>\nAdd.\n</think>\nfour<|end|>",
        "<|end|>",
    ]
    sample = template.encode(conversation)
    learnt = sample.tokens[sample.is_learnt].tolist()
    assert template.tokenizer.decode(learnt, skip_special_tokens=False) == (
        "<think>\nAdd.\n</think>\nfour<|end|><|end|>"
    )


def test_without_marks_a_message_is_what_it_adds(with_template):
    template = load_template(with_template(CHATML))
    assert not template.marks_generation
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    text, spans = template.render(Conversation(messages))
    assert [text[begin:end] for begin, end in spans] == ["four<|end|>", "yes<|end|>"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (FORGETFUL, "up to message 2 otherwise than within the whole"),
        ("{{ raise_exception('only one turn') }}", "the template refuses it: only one turn"),
        ("{{ messages.append(1) }}", "the template does what a sandbox forbids"),
        ("{{ ''.__class__.__mro__ }}", "the template does what a sandbox forbids"),
        ("{{ messages[0].content + 1 }}", "the template fails on it (TypeError"),
        ("{{ messages[7].content.x }}", "the template refuses it"),
        ("{{ raise_exception('a\nb\\ud800') }}", r"the template refuses it: a b\ud800"),
        ("{{ 1 / 0 }}", "the template fails on it (ZeroDivisionError: division by zero)"),
        ("{{ range(200000) }}", "the template fails on it (OverflowError: Range too big."),
        ("{{ '{0}'.format() }}", "the template fails on it (IndexError: "),
        ("{{ 'a' * 10**15 }}", "the template fails on it (MemoryError)"),
        ("{{ [0] * 10**15 }}", "the template fails on it (MemoryError)"),
        ("{{ 'a' | center(10**15) }}", "the template fails on it (MemoryError)"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails on it (RecursionError"),
        ("{{ '\\ud800' }}", "the template renders half of a surrogate pair"),
        ("{{ '\\ufdd1' }}", "the template itself writes U+FDD0 or U+FDD1"),
        ("{{ strftime_now('%Y') }}", "the template calls strftime_now, which is not there: the"),
        (
            "{% macro f() %}{% generation %}b{% endgeneration %}{% endmacro %}"
            "{% generation %}{{ f() }}{% endgeneration %}",
            "refuses it: a {% generation %} block stands within another",
        ),
    ],
)
def test_what_a_template_does_not_render_is_told(with_template, template: str, reason: str):
    loaded = load_template(with_template(template))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    with pytest.raises(TemplateProblem) as problem:
        loaded.encode(Conversation(messages))
    assert reason in str(problem.value)
    assert "\n" not in str(problem.value)


_TWICE = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}", "2 s of processor time"),
        ("{% set n = 8 %}{{ 10 ** (10**n) }}", "more than 2 s of processor time"),  # within C code
        (_TWICE + "{% endfor %}{{ n.x | tojson }}", "more than 2 s of processor time"),
        ("{{ 'x'.encode('idna') }}", "it was about to open something"),  # imports a module
    ],
)
def test_a_template_that_does_not_end_is_ended_and_begins_anew(
    with_template, template: str, reason: str
):
    guarded = "{% set r = range(99999) %}{% if tools %}a{% else %}" + template + "{% endif %}"
    loaded = load_template(with_template(guarded))
    messages = [{"role": "user", "content": "a"}]
    for _ in range(2):
        with pytest.raises(TemplateProblem, match=reason):
            loaded.prompt(Conversation(messages))
        assert loaded.prompt(Conversation(messages, [{"name": "t"}])) == "a"


def test_a_tokenizer_that_fails_on_a_conversation_is_told(with_template):
    folder = with_template("{{ messages[0].content }}")
    words = models.WordLevel({"a": 0}, unk_token="[UNK]")
    Tokenizer(words).save(str(folder / "tokenizer.json"))
    loaded = load_template(folder)
    told = re.escape(f"{folder}/tokenizer.json: a text cannot be tokenized with it (WordLevel")
    assert loaded.text_tokens("a") == [0]
    for tokenize in (
        lambda: loaded.encode(Conversation([{"role": "user", "content": "b"}])),
        lambda: loaded.text_tokens("b"),
    ):
        with pytest.raises(ValueError, match=told):
            tokenize()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n{% for %}", "Expected an expression, got 'end of statement block', line 2"),
        ("{% break %}", "SyntaxError: 'break' outside loop"),
        ("{% if a %}" * 3000 + "{% endif %}" * 3000, "RecursionError: maximum recursion depth"),
        (
            "\n{% generation %}{% if a %}{% generation %}b{% endgeneration %}{% endif %}"
            "{% endgeneration %}",
            "a {% generation %} block stands within another, which is learnt whole, line 2",
        ),
    ],
)
def test_what_is_no_template_is_told_in_one_line(with_template, text: str, reason: str):
    folder = with_template(text)
    with pytest.raises(ValueError, match="no chat template") as error:
        load_template(folder)
    assert str(error.value).startswith(f"{folder / 'chat_template.jinja'}: no chat template (")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_template_that_asks_for_the_date_if_it_is_there_has_its_own(with_template):
    date = "{{ strftime_now('%Y') if strftime_now is defined else '2024' }}"
    template = load_template(with_template(date))
    assert template.prompt(Conversation([])) == "2024"


def test_marks_in_a_text_are_refused(tiny_tokenizer: Path):
    template = load_template(tiny_tokenizer)
    for content in ("a\ufdd0b", "a\ufdd1b", "\ufdd0b\ufdd1"):
        for role in ("user", "assistant"):
            messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
            messages = [m | {"content": content} if m["role"] == role else m for m in messages]
            with pytest.raises(TemplateProblem, match=r"a text has U\+FDD., which is no character"):
                template.render(Conversation(messages))


def test_a_folder_tells_its_template(with_template, tmp_path: Path):
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    folder = with_template(None, chat_template=named, eos_token={"content": "<|endoftext|>"})
    template = load_template(folder)
    assert (template.text, template.names["eos_token"]) == ("d", "<|endoftext|>")
    file = tmp_path / "other.jinja"
    file.write_text("o")
    assert load_template(folder, file).text == "o"
    assert load_template(folder, file).sha256 != template.sha256
    file.write_text("{% for %}")
    with pytest.raises(ValueError, match=r"other\.jinja: no chat template"):
        load_template(folder, file)
    with pytest.raises(ValueError, match=r"none\.jinja: cannot be read as a template"):
        load_template(folder, tmp_path / "none.jinja")
    with pytest.raises(ValueError, match="no such file; a tokenizer folder holds"):
        load_template(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    assert load_template(folder).text == CHAT_TEMPLATE


def test_tokens_of_a_batch_are_those_of_each(tiny_tokenizer: Path):
    template = load_template(tiny_tokenizer)
    some = conversations(20)
    bad = Conversation([{"role": "user", "content": "a\ufdd1"}])
    found = list(template.encode_all([*some[:10], bad, *some[10:]]))
    assert isinstance(found.pop(10), TemplateProblem)
    for sample, conversation in zip(found, some, strict=True):
        alone = template.encode(conversation)
        assert np.array_equal(sample.tokens, alone.tokens)
        assert np.array_equal(sample.is_learnt, alone.is_learnt)


class Recorded:
    """A tokenizer, and of how many characters each batch was."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.sizes = tokenizer, []

    def encode_batch(self, texts: list[str], **options) -> list:
        self.sizes.append([len(text) for text in texts])
        return self.tokenizer.encode_batch(texts, **options)


def test_batches_are_bounded_by_their_text(with_template, monkeypatch):
    monkeypatch.setattr(template_module, "_GROUP_CHARACTERS", 10)
    monkeypatch.setattr(template_module, "_GROUP_CONVERSATIONS", 3)
    template = load_template(with_template("{{ messages[0].content }}"))
    template.tokenizer = Recorded(template.tokenizer)
    lengths = [4, 6, 1, 12, 1, 1, 1, 1]
    asked = [Conversation([{"role": "user", "content": "a" * length}]) for length in lengths]
    found = list(template.encode_all(iter(asked)))
    assert [len(sample.tokens) for sample in found] == lengths
    assert template.tokenizer.sizes == [[4, 6], [1], [12], [1, 1, 1], [1]]


def test_a_text_of_megabytes_is_refused_before_it_is_tokenized(with_template):
    template = load_template(with_template("{{ messages[0].content * 20000 }}"))
    assert len(template.prompt(Conversation([{"role": "user", "content": "a" * 100}]))) == 2_000_000
    with pytest.raises(TemplateProblem, match="the template renders more than 2,000,000 bytes"):
        template.prompt(Conversation([{"role": "user", "content": "a" * 101}]))
