"""The reference of all settings: `python -m titan_motif.reference --write docs/reference.md`.

A setting's meaning is the docstring under its field, in the class that declared it last (ours
before torchtitan's). Without --write the text goes to the standard output.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

import titan_motif.device  # noqa: F401  (before anything of torchtitan)
from titan_motif.config import JobConfig
from titan_motif.config_refusals import ALLOWED, reason_against
from titan_motif.layout import REFUSED_DEGREES, REFUSED_SWITCHES

MEANINGS = {
    "optimizer.lr": "Peak of the learning rate: Muon's, and AdamW's unless muon.adamw_lr is given.",
    "optimizer.beta1": "AdamW's: how much of the moving mean of gradients is kept at each step.",
    "optimizer.beta2": "AdamW's: how much of the moving mean of their squares is kept.",
    "optimizer.eps": "AdamW's: added to the root of the mean square.",
    "compile.backend": "Backend of torch.compile.",
    "compile.components": "What is compiled: each block of the model, and the loss.",
    "model.converters": (
        "`quantize.linear.float8` computes the products of blocks in FP8; empty is none."
    ),
    "metrics.log_freq": (
        "Steps from one logged line to the next: on the console, in metrics.jsonl, in TensorBoard."
    ),
    "training.steps": (
        "Steps of the run; -1 is all phases of the curriculum, or sft.epochs of the conversations."
    ),
    "parallelism.data_parallel_replicate_degree": (
        "Replicas of the sharded group of ranks (HSDP); 1 is none. Replicas of which nothing is "
        "sharded are refused."
    ),
    "parallelism.data_parallel_shard_degree": (
        "Ranks that parameters, gradients and optimizer states are cut over (FSDP2); -1 is all "
        "that the other degrees leave."
    ),
    "parallelism.tensor_parallel_degree": (
        "Ranks that matrices are cut over, by heads, hidden columns and vocabulary; 1 is none."
    ),
    "validation.enable": (
        "Compute the loss on the held-out split every validation.freq steps, and at the last one."
    ),
    "validation.freq": "Steps from one validation to the next.",
    "validation.local_batch_size": "Sequences in a rank's micro-batch of validation.",
    "validation.seq_len": "Tokens of a sequence of validation.",
    "checkpoint.enable": (
        "Save steps, and go on from the newest whole one when the run is started again."
    ),
    "checkpoint.initial_load_path": (
        "What a run begins from whose own folder has no step: a step, a run's checkpoint folder "
        "(its newest whole step), or safetensors with initial_load_in_hf."
    ),
}
"""What torchtitan's docstrings leave out, or say otherwise than it is here."""

INTRODUCTION = """\
# Reference of settings

Every setting of a job, by section, as `[section]` and `field` in a TOML file or as
`--section.field` on the command line ([how](configuration.md)). Meanings are the docstrings of the
sections: of `titan_motif/config.py`, and where a setting is torchtitan's, its own. Settings of
torchtitan's that this trainer does not serve are [at the end](#not-served).

This page is written by `python -m titan_motif.reference --write docs/reference.md`; a test
compares.
"""


@dataclass
class Options:
    """Print the reference of all settings, in Markdown."""

    write: Path | None = None
    """The file to write it to."""


@dataclass(frozen=True)
class Setting:
    """A field of a section."""

    key: str
    kind: Any
    default: Any
    meaning: str


def main(options: Options) -> None:
    """Write or print the reference."""
    if options.write is None:
        print(reference(), end="")
    else:
        options.write.write_text(reference())


def reference() -> str:
    """Return the page."""
    served: dict[str, list[Setting]] = {}
    refused = []
    for setting in settings(JobConfig):
        section = setting.key.rpartition(".")[0]
        reason = refusal(setting.key)
        if reason:
            name = f'<a id="{setting.key}"></a>`{setting.key}`'
            refused.append(f"| {name} | {_default(setting)} | {_escape(reason)} |")
        else:
            served.setdefault(section, []).append(setting)
    parts = [INTRODUCTION]
    for section, members in sorted(served.items()):
        parts.append(f"## `[{section}]`\n\n{_table(members)}")
        for member in members:
            item = _item(member.kind)
            if item is not None:
                parts.append(f"### `[[{member.key}]]`\n\n{_table(settings(item, member.key))}")
    head = "| setting | must be | because |\n| --- | --- | --- |"
    parts.append("\n".join(["## Not served", "", head, *refused]) + "\n")
    return "\n".join(parts)


def settings(section: type, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a section and of those in it.

    Raises: ValueError naming a field without a meaning
    """
    meanings = _docstrings(section)
    for entry in dataclasses.fields(section):
        key = f"{prefix}.{entry.name}".removeprefix(".")
        if dataclasses.is_dataclass(entry.type):
            yield from settings(entry.type, key)
            continue
        meaning = MEANINGS.get(key) or meanings.get(entry.name)
        if not meaning:
            raise ValueError(f"{key} has no docstring in {section.__module__}.{section.__name__}")
        factory = entry.default_factory
        default = entry.default if factory is dataclasses.MISSING else factory()
        yield Setting(key, entry.type, default, meaning)


def refusal(key: str) -> str | None:
    """Return why a setting has to keep its default; None where it is served."""
    section, _, name = key.rpartition(".")
    if section == "parallelism" and name in REFUSED_DEGREES | REFUSED_SWITCHES:
        return (REFUSED_DEGREES | REFUSED_SWITCHES)[name]
    return reason_against(key)


def _docstrings(section: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass and of those it is based on."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for entry, following in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(entry, ast.AnnAssign) and isinstance(following, ast.Expr):
                found[entry.target.id] = inspect.cleandoc(ast.literal_eval(following.value))
    return found


def _table(members: Iterator[Setting] | list[Setting]) -> str:
    lines = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    for setting in members:
        name = f'<a id="{setting.key}"></a>`{setting.key.rpartition(".")[2]}`'
        cells = [name, _kind(setting), _default(setting), _escape(setting.meaning)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _kind(setting: Setting) -> str:
    allowed = " ".join(f"`{value}`" for value in ALLOWED.get(setting.key, ()))
    if allowed and isinstance(setting.default, list):
        return f"list of {allowed}"
    return allowed or _plain(setting.kind)


def _plain(kind: Any) -> str:
    """Return what a value of a type is called in TOML."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:  # a hint for torchtitan's command line
        return _plain(members[0])
    if origin is Literal:
        return " ".join(f"`{value}`" for value in members)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_plain(member) for member in members if member is not type(None))
    if origin is list:
        return "tables" if dataclasses.is_dataclass(members[0]) else f"list of {_plain(members[0])}"
    if origin is dict:
        return f"table of {_plain(members[1])}"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[kind]


def _item(kind: Any) -> type | None:
    """Return the dataclass that a list holds, or None."""
    for member in (kind, *typing.get_args(kind)):
        items = typing.get_args(member) if typing.get_origin(member) is list else ()
        if items and dataclasses.is_dataclass(items[0]):
            return items[0]
    return None


def _default(setting: Setting) -> str:
    value = setting.default
    if value is None:
        return "unset"
    if isinstance(value, dict):
        return "`{}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value!r}`".replace("'", '"')


def _escape(text: str) -> str:
    """Return a docstring as the content of one cell of a table."""
    text = re.sub(r"\n\s*- ", "<br>- ", text.replace("<", "&lt;"))
    text = " ".join(text.split())
    # A table takes a bar for its own in code too; anything else is itself there.
    return re.sub(
        r"(`[^`]*`)|([*|])", lambda m: m[1].replace("|", r"\|") if m[1] else "\\" + m[2], text
    )


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m titan_motif.reference"))
