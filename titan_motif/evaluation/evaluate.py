"""`titan-motif evaluate`: benchmarks of a trained model, by lm-evaluation-harness."""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import titan_motif.device as default_device  # before anything of torchtitan

# isort: split
import torch

from titan_motif import __version__
from titan_motif.config_loading import load_config
from titan_motif.curriculum import sources_of
from titan_motif.evaluation import results as tables
from titan_motif.evaluation.loading import (
    RESOLVED,
    dtype_named,
    load_model,
    newest_step,
    tokenizer_folder_of,
    usable_device,
)
from titan_motif.evaluation.local_tasks.perplexity import SPLIT, data_groups
from titan_motif.evaluation.local_tasks.setting import Setting
from titan_motif.evaluation.presets import Wanted, wanted_tasks
from titan_motif.evaluation.ranks import Ranks


@dataclass
class Options:
    """Evaluate a model on tasks: the report's benchmarks, the harness's own, yours, local ones.

    Under torchrun every process has a whole model and takes its share of the requests.

    Example: titan-motif evaluate outputs/debug/checkpoint/step-385 --tasks sums,perplexity
    """

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """A DCP step, a run's checkpoint folder (its newest whole step), or a directory of
    safetensors."""
    tasks: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Names with commas between them; may be given several times. 'motif2' is the report's
    benchmarks, 'motif2:gsm8k' one of them, 'local' all that needs no download."""
    list_tasks: bool = False
    """Tell the presets and local tasks, what each downloads and needs, and end."""
    num_fewshot: int | None = None
    """Solved examples before each question, in place of the tasks' own numbers; tasks that are made
    for none have none."""
    limit: int | None = None
    """Documents of each task, for a trial."""
    batch_size: int = 8
    """Rows that run at once."""
    max_length: int | None = None
    """Tokens that the network is given at most; without it, what the network is meant for."""
    max_new_tokens: int | None = None
    """Most tokens of a generated text, in place of the tasks' own numbers."""
    chat: bool = False
    """Put each question as a user's turn, in the tokenizer's chat template."""
    system: str | None = None
    """What a conversation begins with."""
    data: Path | None = None
    """Prepared data whose held-out documents `perplexity` reads, a source or a folder of sources;
    without it, those of the step's run."""
    include_path: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A folder with tasks of your own, in the harness's form."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, where neither the checkpoint nor its run has it."""
    config: Path | None = None
    """The model's job, where its folder does not tell its network."""
    device: str = default_device.device_type
    """Where to run: cpu, cuda, cuda:1; under torchrun cuda is one GPU for each process."""
    dtype: Literal["auto", "same", "bfloat16", "float32", "float64"] = "auto"
    """Of weights and arithmetic; 'auto' is float32 on a CPU and bfloat16 elsewhere, 'same' that of
    the files."""
    json: Path | None = None
    """Write the results to this file."""
    tensorboard: Path | None = None
    """Write the values to this folder of TensorBoard's, such as a run's tb."""
    step: int | None = None
    """The step that they are shown at; without it, that in the checkpoint's name."""
    verbose: bool = False
    """Show what the harness logs."""


def main(options: Options) -> None:
    if options.list_tasks:
        tables.print_tasks()
        return
    if options.checkpoint is not None:
        options = replace(options, checkpoint=newest_step(options.checkpoint))
    wanted = _check(options)
    checkpoint = options.checkpoint
    assert checkpoint is not None
    _require_harness()
    from titan_motif.evaluation import harness_tasks
    from titan_motif.evaluation.harness_model import VERSION, HarnessModel

    folder = tokenizer_folder_of(checkpoint, options.tokenizer)
    begin = time.perf_counter()
    with Ranks() as ranks:
        manager = harness_tasks.manager_of(wanted, options.include_path, options.verbose)
        items = harness_tasks.load_harness_tasks(manager, wanted)
        groups = _groups(options) if Wanted("perplexity") in wanted else {}
        device = usable_device(ranks.device(options.device))
        dtype = dtype_named(options.dtype, device)
        network = load_model(checkpoint, options.config, device, dtype)
        settings = options.batch_size, options.max_length, options.chat
        model = HarnessModel(network, folder, *settings, ranks=ranks)
        setting = Setting(folder, model.max_length, options.chat, groups)
        items += harness_tasks.load_local_tasks(manager, wanted, setting)
        loaded = manager.load(items)
        for task in loaded["tasks"].values():
            _check_size(task, ranks.size, options.limit)
            if options.num_fewshot is not None:
                harness_tasks.set_shots(task, options.num_fewshot)
        found = harness_tasks.run(
            model,
            loaded,
            limit=options.limit,
            is_chat=options.chat,
            system=options.system,
            max_new_tokens=options.max_new_tokens,
        )
        cut = ranks.gather_object(model.num_cut)
    if found is None:
        return
    figures = {
        "checkpoint": str(checkpoint),
        "step": _step(options),
        "tasks": tables.figures_of(found),
        "cut_requests": sum(cut or ()),
        "max_length": model.max_length,
        "chat": options.chat,
        "limit": options.limit,
        "device": str(device),
        "dtype": str(network.norm.weight.dtype).removeprefix("torch."),
        "ranks": ranks.size,
        "seconds": time.perf_counter() - begin,
        "versions": {"titan_motif": __version__, "lm_eval": VERSION, "torch": torch.__version__},
    }
    _report(options, figures)


def _require_harness() -> None:
    """Raise ValueError, one line, unless the optional package is there."""
    try:
        import titan_motif.evaluation.harness_model  # noqa: F401
    except ImportError as error:
        if not (error.name or "").startswith(("titan_motif", "torch")):
            raise ValueError(
                f"lm-evaluation-harness is not installed, not whole or too old ({error}); "
                "pip install 'titan-motif[eval]' brings it"
            ) from None
        raise


def _check(options: Options) -> list[Wanted]:
    """Return the tasks; ValueError for options that do not go together, before anything is read."""
    if options.checkpoint is None:
        raise ValueError("no checkpoint is given; a step or a directory of safetensors is needed")
    if not options.tasks:
        raise ValueError("--tasks is not given; a task is needed: --list-tasks tells them")
    wanted = wanted_tasks(options.tasks)
    for name, least in (
        ("limit", 1),
        ("batch_size", 1),
        ("max_new_tokens", 1),
        ("num_fewshot", 0),
        ("step", 0),
    ):
        value = getattr(options, name)
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {value}; at least {least} is needed")
    if options.system is not None and not options.chat:
        raise ValueError("--system is given; it needs --chat")
    if options.step is not None and options.tensorboard is None:
        raise ValueError("--step is given; it needs --tensorboard")
    if options.tensorboard is not None and _step(options) is None:
        raise ValueError(
            f"--tensorboard needs a step, and {options.checkpoint.name!r} names none; give --step"
        )
    if options.data is not None and Wanted("perplexity") not in wanted:
        raise ValueError("--data is given; it needs the task perplexity")
    return wanted


def _step(options: Options) -> int | None:
    """Return the step that the results belong to, None if it is not known."""
    assert options.checkpoint is not None
    named = re.fullmatch(r"step-(\d+)", options.checkpoint.absolute().name)
    return int(named[1]) if options.step is None and named else options.step


def _groups(options: Options) -> Mapping[str, Sequence[Path]]:
    """Return the folders of each group's held-out split: the chosen ones, or those of the run."""
    if options.data is not None:
        return data_groups(options.data)
    assert options.checkpoint is not None
    resolved = options.checkpoint.absolute().parent.parent / RESOLVED
    if not resolved.is_file():
        return {}
    groups: dict[str, list[Path]] = {}
    for source in sources_of(load_config(["--job.config_file", str(resolved)], runs_here=False)):
        groups.setdefault(source.group, []).append(source.folder / SPLIT)
    return groups


def _check_size(task: Any, num_ranks: int, limit: int | None) -> None:
    """Raise ValueError if a rank would have no document of a task."""
    size = min(len(task.eval_docs), limit or sys.maxsize)
    if size < num_ranks:
        raise ValueError(
            f"task {task.task_name!r} has {size} documents for {num_ranks} processes; each needs "
            "at least one"
        )


def _report(options: Options, figures: dict[str, Any]) -> None:
    tables.print_results(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.tensorboard is not None:
        tables.write_tensorboard(options.tensorboard, figures)
