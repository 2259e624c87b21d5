"""Tasks by their names: the harness's own and the user's, each with its data loaded, and ours."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from titan_motif.evaluation.harness_model import HarnessModel
from titan_motif.evaluation.local_tasks import arithmetic, needle, perplexity, sums
from titan_motif.evaluation.local_tasks.setting import Setting, Task
from titan_motif.harness.package import TaskManager, evaluate_by_harness
from titan_motif.harness.presets import Wanted, check_code_is_allowed, check_known

_LOCAL = {
    "sums": lambda setting: [sums.task(setting)],
    "arithmetic": lambda setting: [arithmetic.task(setting)],
    "perplexity": perplexity.tasks,
    "needle": needle.tasks,
}


def load_harness_tasks(manager: TaskManager, wanted: Sequence[Wanted]) -> list[Any]:
    """Return the tasks and groups of the harness, their data downloaded or found in the cache.

    Raises: ValueError, one line: a task that is not known, one that would run a model's code
            without leave, or one whose data cannot be had
    """
    check_known(wanted, manager.all_tasks)
    theirs = [task for task in wanted if not task.is_local]
    for task in theirs:
        settings = _settings(manager, task.name)
        if settings.get("unsafe_code") or (task.preset is not None and task.preset.runs_code):
            check_code_is_allowed(task.name)
    return [item for task in theirs for item in _load(manager, task)]


def load_local_tasks(manager: TaskManager, wanted: Sequence[Wanted], setting: Setting) -> list[Any]:
    """Return our own tasks among those that are wanted.

    Raises: ValueError, one line, if one of them lacks its data or room
    """
    names = [task.name for task in wanted if task.is_local]
    made: list[Task] = [made for name in names for made in _LOCAL[name](setting)]
    return list(manager.load(made)["tasks"].values()) if made else []


def _load(manager: TaskManager, wanted: Wanted) -> list[Any]:
    try:
        loaded = manager.load([wanted.name])
    except Exception as error:  # the harness, `datasets` and the hub have many kinds
        raise ValueError(_what_is_missing(manager, wanted, error)) from error
    tasks, groups = loaded["tasks"], loaded.get("groups", {})
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            check_code_is_allowed(name)
        if wanted.shots is not None:
            set_shots(task, wanted.shots)
    inner = {child for group in groups.values() for child in group.child_names}
    roots = [group for name, group in groups.items() if name not in inner]
    return roots or list(tasks.values())


def set_shots(task: Any, shots: int) -> None:
    """Set how many solved examples come first, but for a task that is made for none."""
    if task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=shots)


def prepare_generation(task: Any, model: HarnessModel, max_new_tokens: int | None) -> None:
    """Set the most tokens of a generated text, None for the task's own number.

    Raises: ValueError, one line, if the model cannot generate as the task asks for
    """
    if task.get_config("output_type") != "generate_until":
        return
    if max_new_tokens is not None:
        most = {"max_gen_toks": max_new_tokens}
        task.set_config(key="generation_kwargs", value=most, update=True)
    model.generation(task.get_config("generation_kwargs") or {})


def run(
    model: HarnessModel,
    loaded: dict[str, Any],
    *,
    limit: int | None = None,
    is_chat: bool = False,
    system: str | None = None,
    seed: int = 1234,
) -> dict[str, Any] | None:
    """Return the harness's results; None on other ranks than the first.

    As the harness's own `simple_evaluate` for what is loaded already, without the seconds that it
    takes to describe the machine. Its seed is the harness's: it draws the solved examples.

    Args:
        loaded: what the manager's `load` gives
    """
    random.seed(0)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    return evaluate_by_harness(
        model,
        loaded,
        limit=limit,
        log_samples=False,
        apply_chat_template=is_chat,
        fewshot_as_multiturn=is_chat,
        system_instruction=system,
        # Whoever has not allowed it was refused while the tasks were loaded.
        confirm_run_unsafe_code=True,
    )


def _settings(manager: TaskManager, name: str) -> dict[str, Any]:
    """Return what a task's YAML file says; nothing for a tag."""
    entry = manager.task_index.get(name)
    return {} if entry is None or entry.cfg is None else entry.cfg


def _what_is_missing(manager: TaskManager, wanted: Wanted, error: Exception) -> str:
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    preset = wanted.preset
    needs = preset.needs if preset is not None and not preset.runs_code else ""
    if isinstance(error, ImportError):
        cure = f"; {needs} brings it" if needs else ""
        return f"task {wanted.name!r} needs a package that is not installed ({reason}){cure}"
    data = preset.data if preset else _settings(manager, wanted.name).get("dataset_path")
    return (
        f"task {wanted.name!r} cannot be loaded; it needs {data or 'its data set'} from the "
        f"Hugging Face hub or its cache{f', {needs}' if needs else ''} ({reason})"
    )
