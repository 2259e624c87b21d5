"""`titan-motif average`: the mean of the weights of several steps."""

import json
from dataclasses import dataclass
from pathlib import Path

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from torch import Tensor

from titan_motif.components.dcp_files import write_dcp
from titan_motif.components.progress import byte_progress
from titan_motif.components.saved_steps import saved_steps
from titan_motif.interchange import output_folder
from titan_motif.interchange.model_files import ModelFiles, open_model
from titan_motif.model.hf_config import CONFIG, hf_config


@dataclass
class Options:
    """Write the mean of the last steps of a run as a sealed step, tensor by tensor.

    A job begins from it with checkpoint.initial_load_path; `titan-motif export` takes it too.

    Example: titan-motif average --from outputs/debug/checkpoint --to outputs/averaged --last 6
    """

    from_: output_folder.From
    """The folder with the step-N directories."""
    to: Path
    """The folder to write; nothing is ever replaced."""
    last: int = 6
    """How many steps, from the newest whole one backwards."""
    steps: tuple[int, ...] = ()
    """These steps in place of the last ones."""
    config: Path | None = None
    """The run's job, where its config.resolved.toml is not beside the folder."""
    json: Path | None = None
    """Write the figures to this file."""


def main(options: Options) -> None:
    """Write the mean of the weights of several steps."""
    models = [open_model(path, options.config) for path in _paths(options)]
    tensors = models[0].tensors
    for model in models[1:]:
        if model.tensors != tensors:
            name = next(name for name in tensors if model.tensors[name] != tensors[name])
            raise ValueError(f"{model.folder}: {name} is of another dtype than in the others")
    with output_folder.made(options.to, models[0].num_bytes) as work:
        (work / CONFIG).write_text(hf_config(models[0].args, models[0].dtype))
        with byte_progress("averaging", models[0].num_bytes) as advance:

            def make(name: str) -> Tensor:
                advance(tensors[name].num_bytes)
                return mean_of(models, name)

            write_dcp(work, tensors, make)
    names = [model.folder.name for model in models]
    print(f"average: {', '.join(names)} in {options.to}")
    if options.json is not None:
        figures = {"folder": str(options.to), "steps": names, "tensors": len(tensors)}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def mean_of(models: list[ModelFiles], name: str) -> Tensor:
    """Return the mean of a tensor over several models, summed in float64, rounded once."""
    first = models[0].read_finite(name)
    total = first.double()
    for model in models[1:]:
        total += model.read_finite(name)
    return (total / len(models)).to(first.dtype)


def _paths(options: Options) -> list[Path]:
    """Return the folders of the steps asked for, the newest first; ValueError if one is missing."""
    if not options.from_.is_dir():
        raise ValueError(f"{options.from_}: no such folder")
    whole = {s.step: Path(s.path) for s in saved_steps(options.from_) if s.problem is None}
    there = ", ".join(map(str, sorted(whole))) or "none"
    if options.steps:
        missing = [step for step in options.steps if step not in whole]
        if missing:
            raise ValueError(f"--steps names {missing[0]}; the whole steps there are {there}")
        return [whole[step] for step in sorted(set(options.steps), reverse=True)]
    if not 1 <= options.last <= len(whole):
        raise ValueError(
            f"--last is {options.last}; the whole steps in {options.from_} are {there}"
        )
    return [whole[step] for step in sorted(whole, reverse=True)[: options.last]]
