"""Writing a DCP directory tensor by tensor: each is made when its turn to be written comes."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex

from titan_motif.components.safetensors_files import TensorShape
from titan_motif.components.sealing_writer import SealingWriter


class _MakingPlanner(DefaultSavePlanner):
    """Plans with tensors that have no values, and makes each one as it is written."""

    def __init__(self, make: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._make = make

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        tensor = self._make(index.fqn)
        expected = super().lookup_object(index)
        assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype), index.fqn
        return tensor


def write_dcp(
    folder: Path, tensors: Mapping[str, TensorShape], make: Callable[[str], Tensor]
) -> None:
    """Write tensors as a sealed DCP directory, of which one at a time is in memory.

    Args:
        make: returns the tensor of a name, of its shape and dtype; what it raises is passed on
    """
    state = {
        name: torch.empty(shape.shape, dtype=shape.dtype, device="meta")
        for name, shape in tensors.items()
    }
    with warnings.catch_warnings():  # that this is one process, it is told every time
        warnings.simplefilter("ignore", UserWarning)
        try:
            dcp.save(
                state,
                storage_writer=SealingWriter(folder),
                planner=_MakingPlanner(make),
                no_dist=True,
            )
        except CheckpointException as error:  # what `make` raised, wrapped, and no Exception
            inner = next(iter(error.failures.values()))[0]
            if isinstance(inner, OSError):
                raise ValueError(f"{folder}: cannot be written ({inner.strerror})") from None
            raise inner from None
