"""`titan-motif import`: safetensors of the world as a step that training begins from."""

import json
from dataclasses import dataclass
from pathlib import Path

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from torch import Tensor

from titan_motif.components.dcp_files import write_dcp
from titan_motif.components.progress import byte_progress
from titan_motif.components.saved_steps import is_safetensors
from titan_motif.interchange import output_folder
from titan_motif.interchange.model_files import ModelFiles, open_model
from titan_motif.model.hf_config import CONFIG, hf_config


@dataclass
class Options:
    """Write a model of safetensors as a sealed DCP directory, bit for bit.

    A job begins from it with checkpoint.initial_load_path. Pickles are never read.

    Example: titan-motif import --from Motif-2-12.7B --to data/imported
    """

    from_: output_folder.From
    """A directory of safetensors under the released names, with config.json."""
    to: Path
    """The folder to write; nothing is ever replaced."""
    config: Path | None = None
    """The model's job, where there is no config.json."""
    json: Path | None = None
    """Write the figures to this file."""


def main(options: Options) -> None:
    """Write safetensors as a sealed step."""
    if options.from_.is_dir() and not is_safetensors(options.from_):
        raise ValueError(f"{options.from_}: no safetensors; nothing else is imported")
    source = open_model(options.from_, options.config)
    with output_folder.made(options.to, source.num_bytes) as work:
        _write(work, source)
    num_tensors, num_parameters = len(source.tensors), source.num_parameters
    print(f"import: {num_tensors} tensors, {num_parameters:,} parameters in {options.to}")
    if options.json is not None:
        figures = {
            "folder": str(options.to),
            "tensors": num_tensors,
            "parameters": num_parameters,
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _write(work: Path, source: ModelFiles) -> None:
    # The network goes along: a DCP directory alone does not tell it.
    (work / CONFIG).write_text(hf_config(source.args, source.dtype))
    with byte_progress("importing", source.num_bytes) as advance:

        def make(name: str) -> Tensor:
            tensor = source.read_finite(name)
            advance(source.tensors[name].num_bytes)
            return tensor

        write_dcp(work, source.tensors, make)
