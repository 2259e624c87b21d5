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
from titan_motif.interchange.model_files import ModelFiles
from titan_motif.model import Motif2ModelArgs
from titan_motif.model.hf_config import CONFIG, hf_config
from titan_motif.model.model import parameter_shapes
from titan_motif.model.state_dict_adapter import our_name, released_name

REPORT = "growth.json"
STATE = "optimizer.state."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "token_bytes.npy")


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
    origins = map_tensors(source.args, large)
    shapes = {
        released_name(name): TensorShape(shape, _dtype_of(name, options.dtype))
        for name, shape in parameter_shapes(large).items()
    }
    if options.with_optimizer and not source.states:
        raise GrowthError(f"{source.folder}: has no optimizer's states to grow")
    shards = cut_into_shards(shapes, options.max_shard_bytes)
    plan = _plan(source, large, options)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        return _already_there(to, plan)
    work = to.with_name(f"{to.name}.growing")
    states = _state_shapes(source, origins) if options.with_optimizer else {}
    total = sum(shape.num_bytes for shape in (*shapes.values(), *states.values()))
    _take_up(work, plan, total)

    def make(name: str) -> Tensor:
        origin = origins[name]
        read = source.read_finite(origin.name)
        grown = grow_tensor(origin, read, _dtype_of(name, options.dtype))
        if options.snr_db is not None:
            add_paired_noise(grown, origin, name, options.seed, options.snr_db)
        advance(shapes[released_name(name)].num_bytes)
        return grown

    def make_any(name: str) -> Tensor:
        if name not in states:
            return make(name)
        advance(states[name].num_bytes)
        return _grown_state(source, origins, name)

    if options.with_optimizer:
        ours = {our_name(theirs): shape for theirs, shape in shapes.items()}
        _write_beside(work, source, large, origins, plan, options)
        with byte_progress("growing", total) as advance:
            write_dcp(work, ours | states, make_any)
        return _move(work, to)
    done = sum(
        shape.num_bytes
        for name, shard in shards.items()
        for shape in shard.values()
        if (work / name).exists()
    )
    with byte_progress("growing", total, done) as advance:
        for name, shard in shards.items():
            if not (work / name).exists():
                write_shard(work / name, shard, lambda theirs: make(our_name(theirs)))
    write_index(work, shards)
    assert SafetensorsFolder(work).tensors.keys() == shapes.keys()
    _write_beside(work, source, large, origins, plan, options)
    seal_folder(work)
    return _move(work, to)


def _plan_file(work: Path) -> Path:
    return work.with_name(f"{work.name}.json")


def _move(work: Path, to: Path) -> Path:
    if to.exists():  # and empty
        to.rmdir()
    os.rename(work, to)
    _plan_file(work).unlink()
    return to


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


def _grown_state(source: ModelFiles, origins: dict[str, Origin], state: str) -> Tensor:
    name, _, kind = state.removeprefix(STATE).rpartition(".")
    origin = origins[name]
    read = source.read(f"{STATE}{origin.name}.{kind}")
    if read.ndim == 0:  # the number of steps
        return read
    return grow_moment(origin, read, 2 if kind == "exp_avg_sq" else 1)


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
    if report.is_file() and json.loads(report.read_text())["plan"] == json.loads(json.dumps(plan)):
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


def _write_beside(
    work: Path,
    source: ModelFiles,
    large: Motif2ModelArgs,
    origins: dict[str, Origin],
    plan: dict[str, Any],
    options: GrowthOptions,
) -> None:
    """Write config.json, tokenizer and report."""
    config = hf_config(large, str(options.dtype).removeprefix("torch."))
    (work / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, work / name)
    unused = sorted(source.tensors.keys() - {origin.name for origin in origins.values()})
    report = {
        "plan": plan,
        "layers": [
            {"layer": layer, "from": of, "inserted": inserted}
            for layer, (of, inserted) in enumerate(layer_origins(source.args, large))
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
