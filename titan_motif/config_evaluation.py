"""What a job's settings of evaluation must be: each rule gives the key and what is wrong."""

import os
from collections.abc import Iterator

from titan_motif.components.sft.template import load_template
from titan_motif.config import JobConfig
from titan_motif.config_keys import Finding
from titan_motif.harness.installed import require_harness
from titan_motif.harness.presets import LISTING, check_known, wanted_tasks
from titan_motif.model import Motif2ModelArgs

_TASKS = "evaluation.tasks"


def check_evaluation(
    config: JobConfig, args: Motif2ModelArgs, runs_here: bool
) -> Iterator[Finding]:
    """Yield every finding; none where a job is not evaluated.

    Args:
        runs_here: whether the harness has to be there, and to know the tasks
    """
    settings = config.evaluation
    if not settings.enable:
        return
    longest = args.max_seq_len
    if settings.max_length is not None and settings.max_length > longest:
        yield (
            "evaluation.max_length",
            f"is {settings.max_length}; 2 to {longest}, what {config.model.flavor} is meant for, "
            "is allowed",
        )
    assets = config.model.hf_assets_path
    if settings.chat and os.path.isfile(f"{assets}/tokenizer.json"):  # of others it is made later
        try:
            load_template(assets)
        except ValueError as error:
            yield "evaluation.chat", f"is true; {error}"
    if not settings.tasks:
        yield _TASKS, f"is []; a task is needed: {LISTING} tells them"
        return
    try:
        wanted = wanted_tasks(settings.tasks, _TASKS)
    except ValueError as error:
        yield _TASKS, str(error).removeprefix(f"{_TASKS} ")
        return
    if not runs_here:
        return
    try:
        require_harness()
    except ValueError as error:
        yield "evaluation.enable", f"is true; {error}"
        return
    from titan_motif.harness.manager import manager_of

    try:
        check_known(wanted, manager_of(wanted).all_tasks, _TASKS)
    except ValueError as error:
        yield _TASKS, str(error).removeprefix(f"{_TASKS} ")
