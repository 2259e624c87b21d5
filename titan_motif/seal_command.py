"""`titan-motif seal`: the seal of a checkpoint that something else wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import tyro

from titan_motif.components.safetensors_files import SafetensorsFolder
from titan_motif.components.saved_steps import is_safetensors
from titan_motif.components.seal import content_problem, is_sealed, seal_folder
from titan_motif.components.sealing_writer import seal_dcp


@dataclass
class Options:
    """Record the hash of every file and tensor of a checkpoint, so that damage will be found.

    Nothing in it is run. One that is sealed already is read whole and compared.

    Example: titan-motif seal outputs/old/checkpoint/step-1000
    """

    path: Annotated[Path, tyro.conf.Positional]
    """A DCP directory, or one with safetensors."""


def main(options: Options) -> None:
    """Seal a step, or read one that is sealed whole against its seal."""
    path = options.path
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder")
    if is_sealed(path):
        problem = content_problem(path)
        if problem:
            raise ValueError(f"{path}: {problem}")
        print(f"{path}: sealed already, and whole")
        return
    if is_safetensors(path):
        SafetensorsFolder(path)  # or it says what is broken
        seal_folder(path)
    else:
        seal_dcp(path)
    print(f"{path}: sealed")
