"""Hostile tokenizers, and chat templates: programs that a tokenizer brings along."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from titan_motif.components.preparation.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from titan_motif.drill.hostile_case import CANARY, PLANTED, Case, Place
from titan_motif.evaluation.chat import ChatPrompts

_FILE, _SETTINGS, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_DEEP = 200_000
_STEER = "\x1b]0;renamed\x07\x1b[2J"
"""Renames a terminal's window and empties it."""


def _read_tokenizer(folder: Path) -> Any:
    loaded = load_tokenizer(folder)
    return loaded.end_of_text, loaded.tokenizer.encode("a a", add_special_tokens=False).tokens


def _read_chat(folder: Path) -> Any:
    chat = ChatPrompts(folder)
    tokens = chat.tokens([{"role": "user", "content": "hello"}])
    return chat.template.tokenizer.decode(tokens, skip_special_tokens=False)


def _tokenizer(place: Place) -> None:
    save_tokenizer(
        train_tokenizer(["the cat sat on the mat and the rat ran " * 9], 280), place.inside
    )


def _json(place: Place, **parts: Any) -> None:
    """Write a tokenizer of two entries, some of its parts others."""
    vocabulary = {"a": 0, END_OF_TEXT: 1}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    place.write(_FILE, json.dumps(content | parts))


def _steps(kind: str, step: dict[str, Any], times: int) -> dict[str, Any]:
    return {"type": "Sequence", kind: [step] * times}


def _replace(content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": content}


def _settings(place: Place, content: Any) -> None:
    _tokenizer(place)
    place.write(_SETTINGS, content if isinstance(content, str) else json.dumps(content))


def _linked(place: Place, name: str, content: str) -> None:
    _tokenizer(place)
    (place.inside / name).unlink(missing_ok=True)
    place.link_out(name, content)


def _linked_tokenizer(place: Place) -> None:
    _json(place, model={"type": "BPE", "vocab": {"a": 0, END_OF_TEXT: 1, CANARY: 2}, "merges": []})
    content = (place.inside / _FILE).read_bytes()
    (place.inside / _FILE).unlink()
    place.link_out(_FILE, content)


def _with_code(place: Place) -> None:
    code = {"AutoTokenizer": [f"{PLANTED}.Slow", f"{PLANTED}.Fast"]}
    _settings(place, {"auto_map": code, "tokenizer_class": "Fast", "eos_token": END_OF_TEXT})
    place.plant()


def _steering(place: Place) -> None:
    _settings(place, {"eos_token": _STEER})


_TOKENIZERS: dict[str, Callable[[Place], Any]] = {
    "nested 200,000 deep": lambda p: p.write(_FILE, '{"model":' * _DEEP),
    "of a terabyte": lambda p: p.sparse(_FILE, 1 << 40),
    "that is a link out": lambda p: _linked_tokenizer(p),
    "that is a pipe": lambda p: os.mkfifo(p.inside / _FILE),
    "that doubles a text 40 times": lambda p: _json(
        p, normalizer=_steps("normalizers", _replace("aa"), 40)
    ),
    "that doubles what is decoded 40 times": lambda p: _json(
        p, decoder=_steps("decoders", _replace("aa"), 40)
    ),
    "that makes its library give up": lambda p: _json(
        p, normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}
    ),
    "with settings that are a link out": lambda p: _linked(
        p, _SETTINGS, json.dumps({"eos_token": CANARY})
    ),
    "with a list for its end of text": lambda p: _settings(p, {"eos_token": ["a"]}),
    "with a name that steers a terminal": _steering,
}


def _chat(place: Place, template: str) -> None:
    _tokenizer(place)
    place.write(_TEMPLATE, template.replace("COMMAND", place.command))


def _large_template(place: Place) -> None:
    _tokenizer(place)
    place.sparse(_TEMPLATE, 1 << 40)


_GROW = "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = "

_TEMPLATES: dict[str, str] = {
    "that goes up a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "that calls a module's function": "{{ cycler.__init__.__globals__.os.system('COMMAND') }}",
    "that includes a file": "{% include '../outside/secret' %}",
    "that encodes by an import": "{{ 'x'.encode('idna') }}",
    "of loops without end": "{% set r = range(99999) %}"
    "{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "of a number without end": "{% set n = 8 %}{{ 10 ** (10 ** n) }}",
    "of a text of a terabyte": "{% set n = 10 ** 12 %}{{ 'a' * n }}",
    "that doubles a list 60 times": _GROW + "[n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "that steers a terminal": "{{ raise_exception('a\n" + _STEER + "') }}",
}


def _listed_template(place: Place) -> None:
    _settings(place, {"eos_token": END_OF_TEXT, "chat_template": [{"name": "default"}, 5]})


def _formatting(place: Place) -> None:
    _chat(place, "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}")


_QUICK = (
    *("that doubles a text 40 times", "with a name that steers a terminal"),
    *("that calls a module's function", "that includes a file"),
)

CASES = (
    *(
        Case(f"a tokenizer {name}", build, _read_tokenizer, is_quick=name in _QUICK)
        for name, build in _TOKENIZERS.items()
    ),
    Case("a tokenizer that names its own code", _with_code, _read_tokenizer, is_refused=False),
    *(
        Case(
            f"a template {name}",
            partial(_chat, template=template),
            _read_chat,
            is_quick=name in _QUICK,
        )
        for name, template in _TEMPLATES.items()
    ),
    Case("a template of a terabyte", _large_template, _read_chat),
    Case(
        "a template that is a link out",
        partial(_linked, name=_TEMPLATE, content=CANARY),
        _read_chat,
    ),
    Case("a template of a list without one", _listed_template, _read_chat, is_refused=False),
    Case("a template that formats a class", _formatting, _read_chat, is_refused=False),
)
