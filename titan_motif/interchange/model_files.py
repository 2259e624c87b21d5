"""A model as a directory holds it: its network, and its tensors by our names, one at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from titan_motif.components.dcp_files import DcpFolder
from titan_motif.components.safetensors_files import SafetensorsFolder, TensorShape
from titan_motif.components.saved_steps import is_safetensors
from titan_motif.components.seal import content_problem, is_sealed, seal_problem
from titan_motif.config_loading import load_config
from titan_motif.model import Motif2ModelArgs
from titan_motif.model.hf_config import CONFIG, read_hf_config
from titan_motif.model.model import parameter_shapes
from titan_motif.model.state_dict_adapter import our_name
from titan_motif.network import model_args
from titan_motif.run_folder import RESOLVED_CONFIG, resolved_config_of


class ModelFiles(NamedTuple):
    """A model on disk."""

    folder: Path
    args: Motif2ModelArgs
    tensors: dict[str, TensorShape]
    """By our names, in the network's order."""
    read: Callable[[str], Tensor]
    """Returns a tensor by our name, or a state by its own."""
    states: Mapping[str, TensorShape] = MappingProxyType({})
    """The optimizer's, as optimizer.state.NAME.STATE; of a step that has them."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what is not kept in float32."""
        return self.tensors["norm.weight"].dtype

    @property
    def num_bytes(self) -> int:
        """Of the weights, as they lie on the disk."""
        return sum(shape.num_bytes for shape in self.tensors.values())

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(torch.Size(shape.shape).numel() for shape in self.tensors.values())

    def read_finite(self, name: str) -> Tensor:
        """Return a tensor; ValueError naming it if a value is not finite."""
        tensor = self.read(name)
        if not all(part.isfinite().all() for part in tensor.split(1 << 12)):
            raise ValueError(f"{self.folder}: {name} has values that are not finite")
        return tensor


def open_model(folder: str | Path, config_file: str | Path | None = None) -> ModelFiles:
    """Open a DCP step or a directory of safetensors; of one that is sealed, every file is read.

    Args:
        config_file: a job's TOML file that tells the network; without one, the directory's
                     config.json does, or the config.resolved.toml of the run that wrote the step
    Raises: ValueError, one line, naming the file or the first tensor that is wrong
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    args = _network(folder, config_file)
    if is_safetensors(folder) or not (folder / ".metadata").is_file():
        if is_sealed(folder):
            problem = seal_problem(folder) or content_problem(folder)
            if problem:
                raise ValueError(f"{folder}: {problem}")
        files = SafetensorsFolder(folder)
        try:
            theirs = {our_name(name): name for name in files.tensors}
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        found = {ours: files.tensors[name] for ours, name in theirs.items()}
        read = lambda name: files.read(theirs[name])  # noqa: E731
        states: Mapping[str, TensorShape] = {}
    else:
        step = DcpFolder(folder)
        states = step.states
        found, read = {n: s for n, s in step.tensors.items() if _is_ours(n)}, step.read
    return ModelFiles(folder, args, _checked(folder, args, found), read, states)


def _is_ours(name: str) -> bool:
    """Return whether a tensor of a step is a model's, not the trainer's."""
    return name.startswith(("layers.", "scalars.", "tok_embeddings.", "norm.", "output."))


def _checked(
    folder: Path, args: Motif2ModelArgs, found: dict[str, TensorShape]
) -> dict[str, TensorShape]:
    needed = parameter_shapes(args)
    for name, shape in needed.items():
        if name not in found:
            raise ValueError(f"{folder}: lacks the tensor {name}")
        if found[name].shape != shape:
            raise ValueError(
                f"{folder}: {name} is {_times(found[name].shape)}; the network needs "
                f"{_times(shape)}"
            )
    extra = sorted(found.keys() - needed.keys())
    if extra:
        raise ValueError(f"{folder}: the tensor {extra[0]} is none of the network's")
    return {name: found[name] for name in needed}


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _network(folder: Path, config_file: str | Path | None) -> Motif2ModelArgs:
    if config_file is None and (folder / CONFIG).is_file():
        return read_hf_config(folder)
    if config_file is None:
        config_file = resolved_config_of(folder)
    if config_file is None:
        raise ValueError(
            f"{folder}: what network it holds is not known: neither {CONFIG} in it nor the run's "
            f"{RESOLVED_CONFIG} two folders above; name the job's TOML file"
        )
    return network_of(config_file)


def network_of(config_file: str | Path) -> Motif2ModelArgs:
    """Return the network of a job's TOML file; its data need not be there."""
    config = load_config(["--job.config_file", str(config_file)], None, runs_here=False)
    return model_args(config)
