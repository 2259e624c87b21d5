"""What the page of `titan-motif experiment curriculum` says of its own."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from titan_motif.components.curriculum.schedule import Phase
from titan_motif.corpus.prepare import GROUPS
from titan_motif.experiments.builtin_corpus import told_corpus
from titan_motif.experiments.job import CellJob
from titan_motif.experiments.measures import Measure, group_losses
from titan_motif.experiments.page import Page, picture_of_losses, table, told_optimizer
from titan_motif.study.runner import Row

QUESTION = """\
The report changes its mixture linearly over the run, from mostly web text to more code and
mathematics, and anneals with more mathematics than code. Is that better than the final mixture from
the first step on, and than the same mixtures the other way round, hard data first, of which it
names a loss that flattens as a failure? And does mathematics over code in the annealing help?"""
DIFFERENCES = """\
Arms differ in the mixture alone: model, tokens, lengths, batches and rates are the same at every
token, and of each group all arms of a seed read the same order. final has the end's mixture
throughout; hard_first has at every token the mixture that curriculum has as far from the end.
math_over_code and code_over_math are curriculum but for the annealing, where mathematics and code
change places. Arms read unequal amounts of each group: a group's loss tells of that too, and the
mean over groups weighs all alike."""


def curriculum_page(
    *,
    command: str,
    base: CellJob,
    arms: Mapping[str, Sequence[Phase]],
    manifest: dict[str, Any],
) -> Page:
    """Return the page's frame.

    Args:
        command: what makes it all
        arms:    the phases of each
    """
    mean = Measure("mean of groups", mean_loss, is_better_lower=True)
    return Page(
        name="curriculum",
        title="What to mix when",
        question=QUESTION,
        setup="\n\n".join(
            [
                _mixture_table(arms),
                DIFFERENCES,
                _told_training(base, arms["curriculum"]),
                told_corpus(manifest, base.config_sha256),
            ]
        ),
        arms=tuple(arms),
        compared=(
            ("final", "curriculum"),
            ("hard_first", "curriculum"),
            ("code_over_math", "math_over_code"),
        ),
        measures=(mean, *group_losses(GROUPS)),
        pictures=(picture_of_losses(GROUPS),),
        command=command,
    )


def mean_loss(row: Row) -> float:
    """Return the mean of the groups' losses, however many tokens each has."""
    return statistics.fmean(row["validation_losses"].values())


def tokens_of_groups(phases: Sequence[Phase]) -> dict[str, float]:
    """Return the tokens of each group that a run is planned to read."""
    found = dict.fromkeys(GROUPS, 0.0)
    begin = 0
    for phase in phases:
        for group in GROUPS:
            ends = phase.weights_start.get(group, 0.0), phase.weights_end.get(group, 0.0)
            found[group] += (phase.until_tokens - begin) * sum(ends) / 2
        begin = phase.until_tokens
    return found


def _mixture_table(arms: Mapping[str, Sequence[Phase]]) -> str:
    """Return shares of the groups at the first token and at both ends of the last phase."""
    lines = []
    for arm, phases in arms.items():
        read = tokens_of_groups(phases)
        shares = phases[0].weights_start, phases[-1].weights_start, phases[-1].weights_end
        told = ["/".join(f"{100 * share[g]:.0f}" for g in GROUPS) for share in shares]
        lines.append([arm, *told, *(f"{read[group]:,.0f}" for group in GROUPS)])
    head = [f"arm (shares of {', '.join(GROUPS)} in %)", "first token", "last phase", "last token"]
    return table([*head, *(f"{group} tokens" for group in GROUPS)], lines)


def _told_training(base: CellJob, phases: Sequence[Phase]) -> str:
    told = "; ".join(
        f"to {phase.until_tokens:,} tokens sequences of {phase.seq_len}, {phase.batch_tokens:,} a "
        "step"
        for phase in phases
    )
    return f"Every cell: {told}; {told_optimizer(base.job)}"
