"""The tensors of a DCP directory, one at a time, without the ranks that wrote it."""

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from titan_motif.components.safetensors_files import TensorShape
from titan_motif.components.seal import content_problem, seal_problem

OPTIMIZER = "optimizer."


class DcpFolder:
    """The tensors of a sealed step: the model's, and in `states` the optimizer's.

    Args:
        reads_whole: whether to read the files against their seal first
    Raises: ValueError, one line, if it is not sealed, or if something changed since
    """

    def __init__(self, folder: str | Path, reads_whole: bool = True) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: no such folder")
        problem = seal_problem(self.folder)
        if problem is None and reads_whole:
            problem = content_problem(self.folder)
        if problem is not None:
            raise ValueError(f"{self.folder}: {problem}")
        entries = FileSystemReader(self.folder).read_metadata().state_dict_metadata
        found = {
            name: TensorShape(tuple(entry.size), entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self.tensors = {n: s for n, s in found.items() if not n.startswith(OPTIMIZER)}
        self.states = {n: s for n, s in found.items() if n.startswith(OPTIMIZER)}

    def read(self, name: str) -> Tensor:
        """Return a tensor whole; KeyError if there is none of that name."""
        shape, dtype = (self.tensors | self.states)[name]
        state = {name: torch.empty(shape, dtype=dtype)}
        with warnings.catch_warnings():  # that this is one process, it is told every time
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(state, storage_reader=FileSystemReader(self.folder), no_dist=True)
        return state[name]
