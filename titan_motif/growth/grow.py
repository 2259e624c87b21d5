"""Growing a model on disk, tensor by tensor: memory holds a few of the largest tensors at most.

The work lies in TO.growing/ and its plan in TO.growing.json until it is sealed and moved to TO.
Started again after a kill, it goes on with the file that it was writing.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titan_motif.components.dcp_files import write_dcp
from titan_motif.components.file_hashes import file_sha256
from titan_motif.components.foreign_files import read_json
from titan_motif.components.progress import byte_progress
from titan_motif.components.safetensors_files import (
    SafetensorsFolder,
    TensorShape,
    cut_into_shards,
    write_index,
    write_shard,
)
from titan_motif.components.seal import SEAL, content_problem, is_sealed, seal_folder
from titan_motif.growth.mapping import (
    GrowthError,
    Origin,
    carried_lam_init,
    changes_of_function,
    layer_origins,
    map_tensors,
)
from titan_motif.growth.tensors import add_paired_noise, grow_moment, grow_tensor
from titan_motif.interchange import output_folder
from titan_motif.interchange.model_files import ModelFiles
from titan_motif.model import Motif2ModelArgs
from titan_motif.model.hf_config import CONFIG, hf_config
from titan_motif.model.model import parameter_shapes
from titan_motif.model.state_dict_adapter import our_name, released_name

REPORT = "growth.json"
STATE = "optimizer.state."
TOKENIZER_FILES = (*output_folder.TOKENIZER_FILES, "token_bytes.npy")


@dataclass(frozen=True)
class GrowthOptions:
    """How a model is grown, beside what it is grown to."""

    dtype: torch.dtype
    snr_db: float | None = None
    """Signal-to-noise ratio of the paired noise, in decibels; None adds none."""
    seed: int = 0
    max_shard_bytes: int = 4_000_000_000
    with_optimizer: bool = False
    """Write a DCP step with the optimizer's states grown too, in place of safetensors."""


def plan_growth(
    small: Motif2ModelArgs, large: Motif2ModelArgs, allowed: Collection[str] = ()
) -> Motif2ModelArgs:
    """Return the network to grow to, lambda's constants carried along.

    Args:
        allowed: what may change the function: rope_theta, lam_init
    Raises: GrowthError naming what does not fit, or what would change the function
    """
    map_tensors(small, large)
    changes = changes_of_function(small, large)
    refused = [f"{name} ({told})" for name, told in changes.items() if name not in allowed]
    if refused:
        raise GrowthError(
            f"{', '.join(refused)}: the grown model would compute something else; --allow "
            f"{' '.join(changes)} takes it so, and measures by how much"
        )
    if large.lam_init is not None:
        return large
    if "lam_init" in allowed:  # the released formula, of the new layers' numbers
        return large
    return dataclasses.replace(large, lam_init=carried_lam_init(small, large))


def grow(source: ModelFiles, large: Motif2ModelArgs, to: Path, options: GrowthOptions) -> Path:
    """Write the large model as safetensors with config.json, report and seal; return its folder.

    Raises: GrowthError if `to` holds something else, or if the disk has not the room
    """
    if options.with_optimizer and not source.states:
        raise GrowthError(f"{source.folder}: has no optimizer's states to grow")
    grown = _Grown(source, large, options)
    plan = _plan(source, large, options)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        return _already_there(to, plan)
    work = to.with_name(f"{to.name}.growing")
    _take_up(work, plan, grown.num_bytes)
    _write_beside(work, grown, plan)
    if options.with_optimizer:
        grown.write_step(work)
    else:
        grown.write_safetensors(work)
        seal_folder(work)
    if to.exists():  # and empty
        to.rmdir()
    os.rename(work, to)
    _plan_file(work).unlink()
    return to


class _Grown:
    """The tensors of the large model, made one by one as they are written."""

    def __init__(self, source: ModelFiles, large: Motif2ModelArgs, options: GrowthOptions) -> None:
        self.source, self.large, self.options = source, large, options
        self.origins = map_tensors(source.args, large)
        self.shapes = {
            name: TensorShape(shape, _dtype_of(name, options.dtype))
            for name, shape in parameter_shapes(large).items()
        }
        self.states = _state_shapes(source, self.origins) if options.with_optimizer else {}
        self.num_bytes = sum(s.num_bytes for s in (*self.shapes.values(), *self.states.values()))

    def write_step(self, folder: Path) -> None:
        """Write a sealed DCP step, the optimizer's states with it."""
        with byte_progress("growing", self.num_bytes) as advance:

            def make(name: str) -> Tensor:
                tensor = self._state(name) if name in self.states else self._tensor(name)
                advance(tensor.nbytes)
                return tensor

            write_dcp(folder, self.shapes | self.states, make)

    def write_safetensors(self, folder: Path) -> None:
        """Write the files that are not there yet, and their index."""
        shapes = {released_name(name): shape for name, shape in self.shapes.items()}
        shards = cut_into_shards(shapes, self.options.max_shard_bytes)
        there = [name for name in shards if (folder / name).exists()]
        done = sum(shape.num_bytes for name in there for shape in shards[name].values())
        with byte_progress("growing", self.num_bytes, done) as advance:

            def make(theirs: str) -> Tensor:
                tensor = self._tensor(our_name(theirs))
                advance(tensor.nbytes)
                return tensor

            for name in (name for name in shards if name not in there):
                write_shard(folder / name, shards[name], make)
        write_index(folder, shards)
        assert SafetensorsFolder(folder).tensors.keys() == shapes.keys()

    def _tensor(self, name: str) -> Tensor:
        origin = self.origins[name]
        source = self.source.read_finite(origin.name)
        grown = grow_tensor(origin, source, self.shapes[name].dtype)
        if self.options.snr_db is not None:
            add_paired_noise(grown, origin, name, self.options.seed, self.options.snr_db)
        return grown

    def _state(self, state: str) -> Tensor:
        name, _, kind = state.removeprefix(STATE).rpartition(".")
        origin = self.origins[name]
        source = self.source.read(f"{STATE}{origin.name}.{kind}")
        if source.ndim == 0:  # the number of steps
            return source
        return grow_moment(origin, source, 2 if kind == "exp_avg_sq" else 1)


def _plan_file(work: Path) -> Path:
    return work.with_name(f"{work.name}.json")


def _state_shapes(source: ModelFiles, origins: dict[str, Origin]) -> dict[str, TensorShape]:
    """Return the optimizer's states of the large model: those of each tensor's origin."""
    shapes = {}
    for name, origin in origins.items():
        prefix = f"{STATE}{origin.name}."
        for state, shape in source.states.items():
            kind = state.removeprefix(prefix)
            if not state.startswith(prefix) or "." in kind:
                continue
            grown = tuple(len(axis.index) * axis.unit for axis in origin.axes)
            is_number = not shape.shape
            shapes[f"{STATE}{name}.{kind}"] = shape if is_number else shape._replace(shape=grown)
    return shapes


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return float32 of what training keeps in float32 too."""
    is_scalar = name.startswith("scalars.") and dtype.itemsize < 4
    return torch.float32 if is_scalar else dtype


def _plan(source: ModelFiles, large: Motif2ModelArgs, options: GrowthOptions) -> dict[str, Any]:
    """Return what decides the result, in JSON: the same plan goes on, another begins anew."""
    if is_sealed(source.folder):
        content: Any = file_sha256(source.folder / SEAL)
    else:
        files = sorted(path for path in source.folder.iterdir() if path.is_file())
        content = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return {
        "from": str(source.folder.absolute()),
        "content": content,
        "small": dataclasses.asdict(source.args),
        "large": dataclasses.asdict(large),
        "dtype": str(options.dtype).removeprefix("torch."),
        "snr_db": options.snr_db,
        "seed": options.seed,
        "with_optimizer": options.with_optimizer,
        "max_shard_bytes": options.max_shard_bytes,
    }


def _already_there(to: Path, plan: dict[str, Any]) -> Path:
    report = to / REPORT
    if report.is_file() and read_json(report, is_record=True)["plan"] == json.loads(
        json.dumps(plan)
    ):
        problem = content_problem(to)
        if problem is None:
            return to
        raise GrowthError(f"{to}: {problem}; remove it to grow it anew")
    raise GrowthError(f"{to}: holds something else, which is not replaced; name another folder")


def _take_up(work: Path, plan: dict[str, Any], num_bytes: int) -> None:
    """Make the work folder, or keep the finished files of one with the same plan."""
    record, text = _plan_file(work), json.dumps(plan)
    if work.exists() and not record.is_file():
        raise GrowthError(f"{work}: holds something else, where the work was to be kept; move it")
    if work.exists() and (record.read_text() != text or plan["with_optimizer"]):
        shutil.rmtree(work)  # a DCP directory is written as a whole
    work.mkdir(parents=True, exist_ok=True)
    record.write_text(text)
    for leftover in work.glob("*.new"):
        leftover.unlink()
    there = sum(path.stat().st_size for path in work.iterdir())
    free = shutil.disk_usage(work).free
    if num_bytes - there > free:
        raise GrowthError(
            f"{work}: {(num_bytes - there) / 1e9:.2f} GB are needed, and {free / 1e9:.2f} GB left"
        )


def _write_beside(work: Path, grown: _Grown, plan: dict[str, Any]) -> None:
    """Write config.json, tokenizer and report."""
    source, origins = grown.source, grown.origins
    (work / CONFIG).write_text(hf_config(grown.large, grown.options.dtype))
    output_folder.copy_files(source.folder, work, TOKENIZER_FILES)
    unused = sorted(source.tensors.keys() - {origin.name for origin in origins.values()})
    report = {
        "plan": plan,
        "layers": [
            {"layer": layer, "from": of, "inserted": inserted}
            for layer, (of, inserted) in enumerate(layer_origins(source.args, grown.large))
        ],
        "tensors": {name: describe(origin) for name, origin in origins.items()},
        "unused": unused,
    }
    (work / REPORT).write_text(json.dumps(report, indent=1) + "\n")


def describe(origin: Origin) -> str:
    """Return in words what a tensor is made of."""
    if origin.is_zero:
        return f"zeros, in the place of {origin.name}"
    told = [
        f"{'rows' if dim == 0 else 'columns'} {words}"
        for dim, axis in enumerate(origin.axes)
        for words in _axis_words(axis)
    ]
    if origin.divisor != 1:
        told.append(f"divided by {origin.divisor}")
    return f"{origin.name}: {', '.join(told) or 'as it is'}"


def _axis_words(axis: Any) -> Iterator[str]:
    if axis.is_unchanged:
        return
    copies = sorted(set(axis.copies))
    times = f"x{copies[0]}" if len(copies) == 1 else f"x{copies[0]} to x{copies[-1]}"
    units = f" by {axis.unit}" if axis.unit > 1 else ""
    yield f"{times}{units}{', divided by their copies' if axis.is_read else ''}"
