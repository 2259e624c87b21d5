"""What the page of `titan-motif experiment gda` says of its own."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from titan_motif.config import JobConfig
from titan_motif.experiments.lines import reached, told_mean, validation_line
from titan_motif.experiments.measures import Measure, RowsByArm, group_losses, summarize
from titan_motif.experiments.page import Page, Picture, picture_of_losses, table, told_optimizer
from titan_motif.experiments.pictures import draw_accuracy, draw_layers
from titan_motif.experiments.tasks import TASKS
from titan_motif.study.runner import Row

GROUPS = ("text", *(task.name for task in TASKS))
COMPARED = ("standard", "ratio4")
CEILING = 0.995
"""Of right answers: so near to all of them, a task says no more."""
LAYERS = {
    "attention_lambda": "lambda",
    "attention_noise_over_signal": "noise over signal",
}
QUESTION = """\
Does grouped differential attention (GDA) make a small model better than standard attention of as
many parameters, trained on the same tokens: in what it predicts of text, and in finding one thing
among many that look like it? And is the report's ratio of four signal heads to one noise head the
best?"""
DIFFERENCES = """\
All arms have the same layers, widths and signal heads; of a seed, all read the same tokens in the
same order. A GDA arm has noise heads beside them, whose maps, times a learnt lambda, are taken from
the signal heads' maps; values twice as wide, and so a wider output projection; and a norm on each
head's output. The standard arm has no lambda and no norm on its heads. Noise heads and the wider
projection are paid for by a narrower feed-forward layer, so that all matrices together are equally
large. Ratio 3 has 8 noise heads, which cannot share 6 key heads: it has 8."""
TASK_TEXT = """\
Retrieval: 32 entries such as "the red box gets 42." in any order, under 32, 16, 8 or 4 keys that
share their colours and their things; asked is the first, second, ... entry of a key. A guess among
a key's 1, 2, 4 or 8 values is right in 100%, 50%, 25% or 12.5%. Arithmetic: two chains of
assignments such as "let b = a + 37" among each other, modulo 100; asked is every value on the way
along one of 1 to 8 steps, and an answer is right if all are. Nothing that is asked about is ever
trained on."""


def gda_page(
    *,
    command: str,
    job: JobConfig,
    arms: Mapping[str, Mapping[str, int]],
    parameters: Mapping[str, Mapping[str, int]],
    record: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Page:
    """Return the page's frame.

    Args:
        command:    what makes it all
        arms:       shape of each arm, as model.args have it
        parameters: of each arm: total, blocks
        record:     of the prepared data
        settings:   of the results
    """
    accuracy = {task.name: (task.unit, _accuracies(task.name, settings["asked"])) for task in TASKS}
    shares = [
        measure for _, by_difficulty in accuracy.values() for measure in by_difficulty.values()
    ]
    return Page(
        name="gda",
        title="Standard attention against grouped differential attention",
        question=QUESTION,
        setup="\n\n".join(
            [
                _arm_table(arms, parameters),
                DIFFERENCES,
                _told_training(job, settings),
                _told_data(record, settings),
                TASK_TEXT,
            ]
        ),
        arms=tuple(arms),
        compared=(COMPARED,),
        measures=(*group_losses(GROUPS), *shares),
        pictures=(
            picture_of_losses(GROUPS),
            Picture(
                "accuracy",
                "Right answers by difficulty and arm; bars are the standard deviation over seeds, "
                "of one seed the standard error of the questions.",
                partial(draw_accuracy, tasks=accuracy),
            ),
            Picture(
                "layers",
                "Lambda, and the noise maps' share (norm over that of the signal maps), of each "
                "layer over tokens, in the first seed of each GDA arm.",
                partial(draw_layers, curves=LAYERS),
            ),
        ),
        command=command,
        tell_more=_told_reached,
        conclude=partial(_told_ceiling, shares=shares),
    )


def _told_reached(rows: RowsByArm) -> list[str]:
    """Tell when each arm has a loss that `standard` passes on its way, and the one it ends with."""
    if not rows["standard"]:
        return []
    lines = []
    for group in GROUPS:
        curves = {
            arm: [validation_line(row, f"validation_loss/{group}") for row in found]
            for arm, found in rows.items()
        }
        first, last = (statistics.fmean(ys[i] for _, ys in curves["standard"]) for i in (0, -1))
        for goal in ((first + last) / 2, last):
            tokens = [[reached(line, goal) for line in found] for found in curves.values()]
            lines.append(
                [f"{group}, {goal:.4f}", *(told_mean(found, digits=0) for found in tokens)]
            )
    return [
        "Million tokens until a group's validation loss is halfway between those that standard "
        "begins and ends with (at its first and last validation, means over seeds), and until it "
        "is the latter: the mean (least to most) over seeds, between validations linearly.",
        table(["", *rows], lines),
    ]


def _told_ceiling(rows: RowsByArm, shares: Sequence[Measure]) -> list[str]:
    """Name the accuracies that cannot tell the two main arms apart, both near 100%."""
    found = [[summarize(share, rows[arm]) for arm in COMPARED] for share in shares]
    full = [
        share.name
        for share, summaries in zip(shares, found, strict=True)
        if all(summary is not None and summary.mean >= CEILING for summary in summaries)
    ]
    if not full:
        return []
    return [
        f"Both arms answer {100 * CEILING:g}% or more of {'; '.join(full)}: there these tasks are "
        "too easy to tell the arms apart."
    ]


def _accuracies(task: str, num_asked: int) -> dict[int, Measure]:
    """Return the measures of a task by difficulty."""
    found = next(known for known in TASKS if known.name == task)
    return {
        difficulty: Measure(
            f"{task}, {difficulty} {found.unit if difficulty > 1 else found.unit[:-1]}",
            partial(_share, task=task, difficulty=str(difficulty), num_asked=num_asked),
            is_better_lower=False,
            num_asked=num_asked,
        )
        for difficulty in found.difficulties
    }


def _share(row: Row, task: str, difficulty: str, num_asked: int) -> float:
    return row["accuracy"][task][difficulty] / num_asked


# ---- set-up


def _arm_table(
    arms: Mapping[str, Mapping[str, int]],
    parameters: Mapping[str, Mapping[str, int]],
) -> str:
    lines = []
    for arm, shape in arms.items():
        ratio, heads = shape["grouped_ratio"], shape["n_heads"]
        noise = heads // (ratio + 1) if ratio else 0
        numbers = (
            heads - noise,
            noise,
            shape["n_kv_heads"],
            shape["hidden_dim"],
            parameters[arm]["total"],
            parameters[arm]["blocks"],
        )
        lines.append([arm, *(f"{number:,}" for number in numbers)])
    head = ["arm", "signal heads", "noise heads", "key heads", "feed-forward width"]
    return table([*head, "parameters", "of them in blocks"], lines)


def _told_training(job: JobConfig, settings: Mapping[str, Any]) -> str:
    phase = job.curriculum.phases[0]
    args, weights = job.model.args, phase.weights_start
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in weights.items())
    return (
        f"Every cell: {args.n_layers} layers of width {args.dim}, heads of {args.head_dim}, "
        f"{args.vocab_size:,} entries; {settings['tokens']:,} tokens ({shares}) in sequences of "
        f"{phase.seq_len}, {phase.global_batch_tokens:,} a step; {told_optimizer(job)}"
    )


def _told_data(record: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    told = [
        f"{name} {splits['train']['tokens']:,} tokens to learn from and "
        f"{splits['validation']['tokens']:,} to validate"
        for name, splits in ((name, s["splits"]) for name, s in record["sources"].items())
    ]
    return (
        f"Data: {'; '.join(told)}. The text is code and documentation that is installed, "
        f"{record['num_texts']:,} files; the tasks are generated. Hashes: texts "
        f"`{record['texts_sha256'][:16]}`, tokenizer `{record['tokenizer_sha256'][:16]}`, prepared "
        f"files `{settings['data_sha256'][:16]}`, configuration `{settings['config_sha256'][:16]}`."
    )
