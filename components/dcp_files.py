"""DCP directories, tensor by tensor, in one process: read against their seal, written with one."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from titan_motif.components.dcp_metadata import read_metadata
from titan_motif.components.dcp_reader import NO_DATA, CheckedPlanner, CheckedReader
from titan_motif.components.safetensors_files import TensorShape
from titan_motif.components.seal import content_problem, seal_problem
from titan_motif.components.sealing_writer import SealingWriter

OPTIMIZER = "optimizer."


class DcpFolder:
    """The tensors of a sealed step: the model's, and in `states` the optimizer's.

    The files are read against their seal first.

    Raises: ValueError, one line, if it is not sealed, or if something changed since
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: no such folder")
        problem = seal_problem(self.folder)
        if problem is None:
            problem = content_problem(self.folder)
        if problem is not None:
            raise ValueError(f"{self.folder}: {problem}")
        self._metadata = read_metadata(self.folder)
        entries = self._metadata.state_dict_metadata
        found = {
            name: TensorShape(tuple(entry.size), entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self.tensors = {n: s for n, s in found.items() if not n.startswith(OPTIMIZER)}
        self.states = {n: s for n, s in found.items() if n.startswith(OPTIMIZER)}

    def read(self, name: str) -> Tensor:
        """Return a tensor whole; KeyError if there is none of that name.

        Raises: ValueError, one line, if the files do not hold it
        """
        shape, dtype = (self.tensors | self.states)[name]
        state = {name: torch.empty(shape, dtype=dtype)}
        try:
            with _as_one_process():
                reader, planner = CheckedReader(self.folder, self._metadata), CheckedPlanner()
                dcp.load(state, storage_reader=reader, planner=planner, no_dist=True)
        except (Exception, CheckpointException) as error:  # damaged files raise anything
            inner = _inner(error)
            told = str(inner).partition("\n")[0]
            if isinstance(inner, UnpicklingError):  # torch tells how to run it all the same
                told = f"it {NO_DATA}"
            raise ValueError(f"{self.folder}: {name} cannot be read ({told})") from None
        return state[name]


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
    try:
        with _as_one_process():
            dcp.save(
                state,
                storage_writer=SealingWriter(folder),
                planner=_MakingPlanner(make),
                no_dist=True,
            )
    except CheckpointException as error:  # what `make` raised, wrapped, and no Exception
        inner = _inner(error)
        if isinstance(inner, OSError):
            raise ValueError(f"{folder}: cannot be written ({inner.strerror})") from None
        raise inner from None


def _inner(error: BaseException) -> BaseException:
    """Return what was raised within DCP, which wraps it."""
    if isinstance(error, CheckpointException):
        return next(iter(error.failures.values()))[0]
    return error


@contextmanager
def _as_one_process() -> Iterator[None]:
    """Keep DCP from telling at every call that this is one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
