"""`titan-motif data prune`: conversations without those that add little, and why each one went.

OUTPUT/kept.jsonl     the rows that stay, unchanged, in their order
OUTPUT/dropped.jsonl  the others: file, line, rule, detail, and for duplicates what they repeat
OUTPUT/report.json    rules, inputs, and how many rows each rule dropped
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import titan_motif.device as default_device  # before anything of torchtitan

# isort: split
from rich.console import Console
from rich.table import Table

from titan_motif.components.file_hashes import file_sha256
from titan_motif.components.preparation.inputs import Input, find_inputs, is_unchanged
from titan_motif.components.preparation.prepare import NUM_TOLD, hash_inputs
from titan_motif.components.preparation.readers import read_rows
from titan_motif.components.preparation.units import BadLine
from titan_motif.components.progress import byte_progress
from titan_motif.components.sft.conversations import Conversation, read_conversation
from titan_motif.components.sft.pruning import RULES, PruneRules
from titan_motif.components.sft.selection import Selection
from titan_motif.data.prune_by_loss import LossBounds, LossJudge, drop_by_loss
from titan_motif.interchange.output_folder import made

KEPT, DROPPED, REPORT = "kept.jsonl", "dropped.jsonl", "report.json"


@dataclass(frozen=True, kw_only=True)
class Options(PruneRules):
    """Leave out conversations that are broken, repetitive, wrong, or there already.

    The rules are asked in a fixed order (bad, empty, length, repetition, answer, arithmetic,
    duplicate, question, near_duplicate, loss), and a row goes under the first that drops it.

    Example: titan-motif data prune --inputs stage2/*.jsonl --output stage3 --keep longest
    """

    inputs: tuple[str, ...]
    """Files, folders or patterns of conversations: JSONL (gzip too), Parquet, Arrow, Hugging Face
    datasets on disk."""
    output: Path
    """The folder to write; nothing is ever replaced."""
    messages_field: str = "messages"
    """Field of a row with the messages."""
    model: Path | None = None
    """A small model (a DCP step, a run's checkpoint folder or a directory of safetensors) whose
    loss on what the assistant says has to be within the bounds below; without one, that rule is
    off."""
    min_loss: float = 0.02
    """Least nats a token that is learnt: below, there is nothing to learn. 0 is off."""
    max_loss: float = 6.0
    """Most nats a token: above, the text is incoherent. 0 is off."""
    min_loss_quantile: float = 0.0
    """Drop this share of the rows that come to this rule, those of the lowest loss."""
    max_loss_quantile: float = 1.0
    """Drop the rows whose loss is above that of this share of them."""
    batch_tokens: int = 4096
    """Tokens that the model reads at once; a longer conversation is judged by so many."""
    tokenizer: Path | None = None
    """Folder of the model's tokenizer, where neither the model nor its run has it."""
    chat_template: Path | None = None
    """File of a Jinja template; none means the tokenizer's own."""
    config: Path | None = None
    """The model's job, where its folder does not tell its network."""
    device: str = default_device.device_type
    """Where the model runs: cpu, cuda, cuda:1."""
    dtype: Literal["auto", "same", "bfloat16", "float32", "float64"] = "auto"
    """Of its weights and arithmetic; 'auto' is float32 on a CPU and bfloat16 elsewhere."""
    json: Path | None = None
    """Write the report to this file too."""


_OF_THE_MODEL = (
    "min_loss",
    "max_loss",
    "min_loss_quantile",
    "max_loss_quantile",
    "batch_tokens",
    "tokenizer",
    "chat_template",
    "config",
    "device",
    "dtype",
)
"""Options that ask for --model."""


def main(options: Options) -> None:
    """Write the conversations that are kept, and print how many went, and why."""
    bounds = _check(options)
    files = find_inputs(options.inputs)
    total = sum(one.num_bytes for one in files)
    with made(options.output, total) as folder:
        judge = None
        if options.model is not None:  # what is wrong with it is told before any work
            judge = LossJudge(
                options.model,
                options.tokenizer,
                options.chat_template or "",
                options.config,
                options.device,
                options.dtype,
                options.batch_tokens,
            )
        selection = _select(files, options, folder / "spool")
        losses = None
        if judge is not None:
            rows = _staying(files, selection, "judging")
            conversations = ((number, _conversation(row, options)) for number, _, row in rows)
            losses = drop_by_loss(selection, conversations, judge, bounds)
        _write_kept(files, selection, folder / KEPT)
        for one in files:
            if not is_unchanged(one):
                raise ValueError(f"{one.path}: changed while it was read; start again")
        _write_dropped(selection, folder / DROPPED)
        report = _report(files, selection, options, folder / KEPT)
        if losses is not None:
            report["loss"] = losses
        content = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (folder / REPORT).write_text(content, encoding="utf-8")
    _print(report, options.output)
    if options.json is not None:
        options.json.write_text(content, encoding="utf-8")


def _check(options: Options) -> LossBounds:
    """Return the bounds of the loss; ValueError for options out of range or without effect."""
    options.check()
    defaults = {field.name: field.default for field in fields(Options)}
    for name in _OF_THE_MODEL:
        value = getattr(options, name)
        if options.model is None and value != defaults[name]:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it needs --model")
    bounds = LossBounds(
        options.min_loss,
        options.max_loss,
        options.min_loss_quantile,
        options.max_loss_quantile,
    )
    bounds.check()
    if options.batch_tokens < 2:
        raise ValueError(f"--batch-tokens is {options.batch_tokens}; at least 2 is needed")
    return bounds


def _select(files: Sequence[Input], options: Options, spool: Path) -> Selection:
    """Return the rows of all files, with all rules asked but that of the loss."""
    selection = Selection(options, spool)
    for one, found in _rows(files, "reading"):
        if isinstance(found, BadLine):
            selection.add_bad(found)
            continue
        line, row = found
        conversation = read_conversation(row, field=options.messages_field)
        if isinstance(conversation, str):
            selection.add_bad(BadLine(one.path, line, conversation, ""))
        else:
            selection.add(one.path, line, row, conversation)
    if not len(selection):
        raise ValueError("the inputs have no rows")
    _tell_bad(selection.bad_lines, options)
    with byte_progress("comparing", selection.compared_bytes) as advance:
        selection.drop_near_duplicates(advance)
    spool.unlink()
    return selection


def _rows(
    files: Sequence[Input], label: str
) -> Iterator[tuple[Input, tuple[int, dict[str, Any]] | BadLine]]:
    """Yield all rows, in the order in which a selection numbers them, and show the progress."""
    with byte_progress(label, sum(one.num_bytes for one in files)) as advance:
        for one in files:
            left = one.num_bytes
            for found in read_rows(one):
                yield one, found
                size = 0 if isinstance(found, BadLine) else len(json.dumps(found[1], default=str))
                advance(min(size, left))
                left -= min(size, left)
            advance(left)


def _staying(
    files: Sequence[Input], selection: Selection, label: str
) -> Iterator[tuple[int, Input, dict[str, Any]]]:
    """Yield number, file and fields of the rows that no rule has dropped."""
    for number, (one, found) in enumerate(_rows(files, label)):
        if number not in selection.drops:
            assert not isinstance(found, BadLine)
            yield number, one, found[1]


def _conversation(row: dict[str, Any], options: Options) -> Conversation:
    found = read_conversation(row, field=options.messages_field)
    assert isinstance(found, Conversation)
    return found


def _tell_bad(bad: Sequence[BadLine], options: Options) -> None:
    """Tell of the first bad rows; ValueError where they are refused."""
    for line in bad[:NUM_TOLD]:
        print(f"prune: bad sample: {line}", flush=True)
    if bad and options.bad_samples == "refuse":
        raise ValueError(
            f"{bad[0]}; of bad samples there {'is 1' if len(bad) == 1 else f'are {len(bad)}'}: "
            "mend them, or leave them out (--bad-samples drop)"
        )


def _write_kept(files: Sequence[Input], selection: Selection, path: Path) -> None:
    with path.open("wb") as out:
        for number, one, row in _staying(files, selection, "writing"):
            try:
                out.write(_line(row))
            except TypeError as error:
                line = selection.place(number).line
                raise ValueError(
                    f"{one.path}, line {line}: cannot be written as JSON ({error}); leave that "
                    "field out"
                ) from None


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, in a field that no rule reads
        return json.dumps(row).encode() + b"\n"


def _write_dropped(selection: Selection, path: Path) -> None:
    with path.open("w", encoding="utf-8") as out:
        for number, drop in sorted(selection.drops.items()):
            told: dict[str, Any] = selection.place(number)._asdict()
            told |= {"rule": drop.rule, "detail": drop.detail}
            if drop.repeats is not None:
                told["repeats"] = selection.place(drop.repeats)._asdict()
            out.write(json.dumps(told, ensure_ascii=False) + "\n")


def _report(
    files: Sequence[Input], selection: Selection, options: Options, kept: Path
) -> dict[str, Any]:
    counts = selection.counts()
    asked = options.asked() | (set() if options.model is None else {"loss"})
    return {
        "inputs": hash_inputs(files),
        "rules": {field.name: getattr(options, field.name) for field in fields(PruneRules)},
        "rows": len(selection),
        "kept": len(selection) - len(selection.drops),
        "dropped": {rule: counts[rule] if rule in asked else None for rule in RULES},
        "compared_with_expected": selection.num_checked,
        "kept_sha256": file_sha256(kept),
    }


def _print(report: dict[str, Any], output: Path) -> None:
    table = Table(box=None, header_style="bold")
    for heading in ("rule", "what it drops"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rows", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    counts = {**report["dropped"], "kept": report["kept"]}
    for rule, count in counts.items():
        figures = ("off", "") if count is None else (f"{count:,}", f"{count / report['rows']:.2%}")
        table.add_row(rule, RULES.get(rule, ""), *figures)
    Console(width=100).print(table)
    rules = report["rules"]
    if rules["answer_field"]:
        print(
            f"prune: {report['compared_with_expected']:,} rows have an expected result (field "
            f"{rules['answer_field']!r}) that their answer could be compared with"
        )
    if "loss" in report:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in report["loss"]["nats"].items())
        print(f"prune: nats a token of {report['loss']['rows']:,} rows: {shown}")
        if report["loss"]["unjudged"]:
            print(f"prune: {report['loss']['unjudged']:,} rows too long to be judged are kept")
    print(f"prune: {output / KEPT}: {report['kept']:,} of {report['rows']:,} rows")
