"""What the page of `titan-motif experiment growth` says of its own."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from titan_motif.config import JobConfig
from titan_motif.corpus.prepare import GROUPS
from titan_motif.experiments.builtin_corpus import told_corpus
from titan_motif.experiments.job import CellJob
from titan_motif.experiments.lines import Line, reached, told_mean, validation_line
from titan_motif.experiments.measures import Measure, RowsByArm, group_losses
from titan_motif.experiments.page import Page, Picture, table, told_optimizer
from titan_motif.experiments.pictures import draw_curves, draw_validation
from titan_motif.model import Motif2ModelArgs
from titan_motif.study.runner import Row

ARMS = ("scratch", "scratch_all", "grown")
QUESTION = """\
The report grew its 12.7B model from a trained one of 2.6B. Does a grown model compute what the
small one does (the report's first experiment)? And is it better, after as many tokens, than the
same network from random weights: beside the compute of its own training (scratch), and beside all
compute, the small model's training included (scratch_all)?"""
DIFFERENCES = """\
grown: the small network is trained, grown by `titan-motif grow` ({snr_db:g} dB of noise that
cancels, so that copies can part), and the large one trained with a new optimizer and schedule.
scratch: the large network from random weights, on the same tokens in the same order as the grown
one reads. scratch_all: the same on {all_tokens:,} tokens: as many more as the small model's
training would have paid for in floating-point operations (6 a weight and token, and attention over
the full square). All arms have the network, and lambda's constants, of the grown model. The small
model of a seed reads the corpus in an order of its own: the grown one sees some text again."""


def growth_page(
    *,
    command: str,
    base: CellJob,
    networks: Mapping[str, Motif2ModelArgs],
    costs: Mapping[str, tuple[int, int]],
    tokens: Mapping[str, int],
    manifest: dict[str, Any],
    snr_db: float,
) -> Page:
    """Return the page's frame.

    Args:
        command:  what makes it all
        networks: small and large
        costs:    of both: parameters, floating-point operations a token
        tokens:   that an arm's large network is trained on
    """
    overall = Measure("loss of all tokens", lambda row: row["validation_loss"], True)
    return Page(
        name="growth",
        title="A grown model against one from scratch",
        question=QUESTION,
        setup="\n\n".join(
            [
                _network_table(networks, costs, tokens),
                DIFFERENCES.format(snr_db=snr_db, all_tokens=tokens["scratch_all"]),
                _told_training(base.job),
                told_corpus(manifest, base.config_sha256),
            ]
        ),
        arms=ARMS,
        compared=(("scratch", "grown"), ("scratch_all", "grown")),
        measures=(overall, *group_losses(GROUPS)),
        pictures=(
            Picture(
                "losses",
                "Validation loss over the large network's tokens, and over all compute (of grown "
                "beginning with the small model's training), by arm: the mean, with the range over "
                "seeds as a band.",
                partial(
                    draw_curves,
                    panels={
                        "large network": ("million tokens", over_tokens),
                        "everything": ("TFLOP (1e12)", over_compute),
                    },
                ),
            ),
            Picture(
                "groups",
                "Validation loss of each group over the large network's tokens.",
                partial(draw_validation, groups=GROUPS),
            ),
        ),
        command=command,
        tell_more=lambda rows: [*_told_equality(rows["grown"]), *_told_reached(rows)],
        conclude=lambda rows: _concluded(rows["grown"]),
    )


def _network_table(
    networks: Mapping[str, Motif2ModelArgs],
    costs: Mapping[str, tuple[int, int]],
    tokens: Mapping[str, int],
) -> str:
    read = {"small": tokens["grown"], "large": tokens["grown"]}
    lines = [
        [
            name,
            *(f"{n:,}" for n in (args.n_layers, args.dim, args.num_signal_heads)),
            *(f"{n:,}" for n in (args.num_groups, args.hidden_dim, *costs[name], read[name])),
        ]
        for name, args in networks.items()
    ]
    head = ["network", "layers", "width", "signal heads", "noise heads", "feed-forward width"]
    return table([*head, "parameters", "operations a token", "tokens"], lines)


def _told_training(job: JobConfig) -> str:
    phase = job.curriculum.phases[0]
    shares = ", ".join(f"{name} {100 * x:.0f}%" for name, x in phase.weights_start.items())
    return (
        f"Every training: tokens of {shares}, in sequences of {phase.seq_len}, "
        f"{phase.global_batch_tokens:,} a step; {told_optimizer(job)}"
    )


# ---- equality


def _told_equality(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        [
            str(number),
            dtype,
            f"{found['largest_difference']:.1e}",
            f"{found['largest_logit']:.1f}",
            f"{found['loss_before']:.8f}",
            f"{found['loss_after']:.8f}",
        ]
        for number, row in enumerate(rows, start=1)
        for dtype, found in row["equality"].items()
    ]
    head = ["grown cell", "dtype", "logits apart", "largest logit", "loss before", "loss after"]
    num = rows[0]["equality"]["float64"]["tokens"]
    return [
        "Equality: the small model and the grown one, before it is trained, on the same "
        f"{num:,} held-out tokens, as many of each group (which makes these losses other ones than "
        "those of the curves); the largest difference of any two logits.",
        table(head, lines),
    ]


# ---- conclusion


def _concluded(rows: Sequence[Row]) -> list[str]:
    """Answer whether the function is kept, and tell what training does with it at first."""
    if not rows:
        return []
    apart = max(row["equality"]["float64"]["largest_difference"] for row in rows)
    lines = [over_tokens(row) for row in rows]
    begin, worst = (
        statistics.fmean(of(losses) for _, losses in lines) for of in (itemgetter(0), max)
    )
    told = (
        "The grown model computes what the small one does: before it is trained, no two logits are "
        f"more than {apart:.1e} apart in float64 (of {len(rows)} cells)."
    )
    if worst <= begin:
        return [f"{told} Its training goes on from that loss."]
    back = [reached(_after_worst(line), line[1][0]) for line in lines]
    return [
        f"{told} Its training, with a new optimizer and the whole warm-up, does not go on from "
        f"that loss: it first rises from {begin:.4f} to {worst:.4f}, at the worst validation, and "
        f"is back after {told_mean(back)} million tokens (means over the cells)."
    ]


def _after_worst(line: Line) -> Line:
    xs, losses = line
    worst = losses.index(max(losses))
    return xs[worst:], losses[worst:]


# ---- tokens and compute to reach a loss


def over_tokens(row: Row) -> Line:
    """Return millions of tokens of the large network, and losses; grown begins at the small's."""
    tokens, losses = validation_line(row, "validation_loss")
    if "small" in row:  # the function was kept
        return [0.0, *tokens], [row["small"]["validation_loss"], *losses]
    return tokens, losses


def over_compute(row: Row) -> Line:
    """Return 1e12 operations, those of the small model included, and losses."""
    flops = row["flops_per_token"]
    tokens, losses = over_tokens(row)
    if "small" not in row:
        return [x * flops["large"] / 1e6 for x in tokens], losses
    before, at_first = over_tokens(row["small"])
    begin = row["small"]["tokens_seen"] * flops["small"] / 1e12
    return (
        [x * flops["small"] / 1e6 for x in before]
        + [begin + x * flops["large"] / 1e6 for x in tokens],
        at_first + losses,
    )


def _told_reached(rows: RowsByArm) -> list[str]:
    """Tell when each arm has the loss that `scratch` ends with, in the mean over its seeds."""
    if not rows["scratch"]:
        return []
    goal = statistics.fmean(row["validation_loss"] for row in rows["scratch"])
    lines = []
    for arm, found in rows.items():
        if found:
            tokens = [reached(over_tokens(row), goal) for row in found]
            compute = [reached(over_compute(row), goal) for row in found]
            num = sum(x is not None for x in tokens)
            lines.append([arm, f"{num} of {len(found)}", told_mean(tokens), told_mean(compute)])
    head = ["arm", "cells that reach it", "million tokens of the large network", "TFLOP in all"]
    return [
        f"To reach {goal:.4f}, which scratch ends with in the mean over its seeds: the mean (least "
        "to most) over the cells that do, between validations linearly. Compute is of training.",
        table(head, lines),
    ]
