"""`titan-motif evaluate`: benchmarks of a trained model, by lm-evaluation-harness."""

import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import titan_motif.device as default_device  # before anything of torchtitan

# isort: split
from titan_motif.config_loading import load_config
from titan_motif.evaluation import results as tables
from titan_motif.evaluation.loading import (
    dtype_named,
    load_model,
    newest_step,
    tokenizer_folder_of,
    usable_device,
)
from titan_motif.evaluation.local_tasks.perplexity import (
    check_documents,
    data_groups,
    held_out_splits,
)
from titan_motif.evaluation.ranks import Ranks
from titan_motif.harness.installed import require_harness
from titan_motif.harness.presets import LISTING, Wanted, wanted_tasks
from titan_motif.run_folder import resolved_config_of


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
    """Put tasks to a model, and print and write how it did."""
    if options.list_tasks:
        tables.print_tasks()
        return
    wanted = _check(options)
    require_harness()
    assert options.checkpoint is not None
    checkpoint = newest_step(options.checkpoint)
    options = replace(options, checkpoint=checkpoint)
    _prepare_tensorboard(options)
    from titan_motif.evaluation.benchmarks import Benchmarks, Settings

    folder = tokenizer_folder_of(checkpoint, options.tokenizer)
    groups = _groups(options, folder) if Wanted("perplexity") in wanted else {}
    names = (setting.name for setting in dataclasses.fields(Settings))
    settings = Settings(**{name: getattr(options, name) for name in names})
    begin = time.perf_counter()
    with Ranks() as ranks:
        more = options.include_path, options.verbose
        benchmarks = Benchmarks(wanted, folder, settings, *more)
        device = usable_device(ranks.device(options.device))
        dtype = dtype_named(options.dtype, device)
        network = load_model(checkpoint, options.config, device, dtype)
        model = benchmarks.model(network, ranks)
        benchmarks.complete(model, groups)
        figures = benchmarks.run(model)
    if figures is None:
        return
    seconds = time.perf_counter() - begin  # with what it took to load
    beside = {"checkpoint": str(checkpoint), "step": _step(options)}
    _report(options, {**beside, **figures, "seconds": seconds})


def _check(options: Options) -> list[Wanted]:
    """Return the tasks; ValueError for options that do not go together, before anything is read."""
    if options.checkpoint is None:
        raise ValueError("no checkpoint is given; a step or a directory of safetensors is needed")
    if not options.tasks:
        raise ValueError(f"--tasks is not given; a task is needed: {LISTING} tells them")
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
    if options.data is not None and Wanted("perplexity") not in wanted:
        raise ValueError("--data is given; it needs the task perplexity")
    return wanted


def _prepare_tensorboard(options: Options) -> None:
    """Make the folder; ValueError if the results will not be written: they come much later."""
    if options.tensorboard is None:
        return
    if _step(options) is None:
        assert options.checkpoint is not None
        raise ValueError(
            f"--tensorboard needs a step, and {options.checkpoint.name!r} names none; give --step"
        )
    try:
        options.tensorboard.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.tensorboard).close()
    except OSError as error:
        raise ValueError(
            f"--tensorboard is {options.tensorboard}; no folder that can be written to "
            f"({error.strerror})"
        ) from None


def _step(options: Options) -> int | None:
    """Return the step that the results belong to, None if it is not known."""
    assert options.checkpoint is not None
    named = re.fullmatch(r"step-(\d+)", options.checkpoint.absolute().name)
    return int(named[1]) if options.step is None and named else options.step


def _groups(options: Options, tokenizer_folder: Path) -> Mapping[str, Sequence[Path]]:
    """Return the folders of each group's held-out split: the chosen ones, or those of the run.

    Raises: ValueError, one line, if `perplexity` cannot read them
    """
    if options.data is not None:
        groups = data_groups(options.data)
        check_documents(groups, tokenizer_folder)
        return groups
    assert options.checkpoint is not None
    resolved = resolved_config_of(options.checkpoint)
    try:
        groups = {}
        if resolved is not None:
            job = load_config(["--job.config_file", str(resolved)], runs_here=False)
            groups = held_out_splits(job)
        check_documents(groups, tokenizer_folder)
    except ValueError as error:
        cure = "name a prepared data set with --data, or leave perplexity out of --tasks"
        raise ValueError(f"{error}; {cure}") from None
    return groups


def _report(options: Options, figures: dict[str, Any]) -> None:
    # Printed last: whoever reads the output may have gone.
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.tensorboard is not None:
        tables.write_tensorboard(options.tensorboard, figures)
    tables.print_results(figures)
