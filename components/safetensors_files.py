"""Directories of safetensors, tensor by tensor: read with checks, written as a stream.

A file is 8 bytes (little endian) with the length of its header, the header in JSON, and the bytes
of the tensors one after the other  (https://github.com/huggingface/safetensors). Nothing in it is
executed. What the index and the headers say is checked before a file that they name is opened, and
before memory is taken.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from titan_motif.components.foreign_files import (
    MAX_JSON_BYTES,
    check_file,
    inside,
    parse_json,
    read_json,
)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = MAX_JSON_BYTES
"""The format allows 100 MB, which become 2 GB in memory; a header of 10,000 tensors has 1 MB."""
MAX_FILE_BYTES = 1 << 50
_MAX_DIMENSIONS = 64
"""As many as torch has; more would take safetensors' own reader hundreds of MB."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


class TensorShape(NamedTuple):
    """What a tensor is without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of its values, without a file's header."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class SafetensorsFolder:
    """The tensors of a directory: one file, or several with an index.

    Raises: ValueError, one line, for files that are missing, broken or outside of the directory,
            and for an index that does not fit them
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files = self._find_files()
        self.tensors: dict[str, TensorShape] = {}
        held: dict[str, str] = {}
        for name in dict.fromkeys(self._files.values()):
            for tensor, shape in self._read_header(name).items():
                if tensor in held:
                    raise ValueError(
                        f"{self.folder}: {tensor} is in {held[tensor]} and in {name} too"
                    )
                self.tensors[tensor] = shape
                held[tensor] = name
        for tensor, name in self._files.items():
            if tensor and held.get(tensor) != name:
                raise ValueError(f"{self.folder / INDEX}: {tensor} is not in {name}")
        if "" not in self._files and held.keys() != self._files.keys():
            extra = min(held.keys() - self._files.keys())
            raise ValueError(
                f"{self.folder / INDEX}: does not name {extra}, which {held[extra]} has"
            )
        self._files = held
        self.file_names = set(held.values())

    def read(self, name: str) -> Tensor:
        """Return a tensor; KeyError if there is none of that name."""
        path = self.folder / self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: {name} cannot be read ({error})") from None

    def _find_files(self) -> dict[str, str]:
        """Return the file of each tensor, of a single file under the name ''."""
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: no such folder")
        index = self.folder / INDEX
        if not index.is_file():
            if (self.folder / SINGLE).is_file():
                self._check_inside(SINGLE)
                return {"": SINGLE}
            pickles = sorted(path.name for path in self.folder.glob("*.bin"))
            hint = f"; {pickles[0]} is a pickle, which is not read" if pickles else ""
            raise ValueError(f"{self.folder}: neither {SINGLE} nor {INDEX}{hint}")
        try:
            files = read_json(inside(self.folder, INDEX))["weight_map"]
            named = {str(tensor): str(name) for tensor, name in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            told = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"{index}: cannot be read as an index ({told})") from None
        if not named:
            raise ValueError(f"{index}: names no tensors")
        for tensor, name in named.items():
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(
                    f"{index}: {tensor} is said to be in {name!r}; a .safetensors file beside the "
                    "index is needed"
                )
        for name in dict.fromkeys(named.values()):
            self._check_inside(name)
            if not (self.folder / name).is_file():
                tensor = next(tensor for tensor in named if named[tensor] == name)
                raise ValueError(
                    f"{self.folder / name}: no such file; {INDEX} names it for {tensor!r}"
                )
        return named

    def _check_inside(self, name: str) -> None:
        try:
            inside(self.folder, name)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None

    def _read_header(self, name: str) -> dict[str, TensorShape]:
        path = self.folder / name
        tensor_extents(path)
        try:
            with safe_open(path, framework="pt") as file:  # checks offsets, sizes and overlaps
                shapes = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                found = {}
                for key, entry in shapes.items():
                    dtype = _dtype(entry.get_dtype())
                    if dtype is None:
                        raise ValueError(
                            f"{path}: {key} is {entry.get_dtype()}; one of "
                            f"{', '.join(DTYPES.values())} is needed"
                        )
                    found[key] = TensorShape(tuple(entry.get_shape()), dtype)
                return found
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: cannot be read as safetensors ({error})") from None


def _dtype(name: str) -> torch.dtype | None:
    return next((dtype for dtype, known in DTYPES.items() if known == name), None)


def tensor_extents(path: Path) -> dict[str, tuple[int, int]]:
    """Return where in a file each tensor begins and ends, as its header says.

    Raises: ValueError, one line, if the header is longer than the file or than is read, is no JSON
            of tensors, or has one that is not within the file
    """
    try:
        check_file(path, MAX_FILE_BYTES)
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            if length > MAX_HEADER_BYTES:
                raise ValueError(
                    f"a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read"
                )
            header = parse_json(file.read(length))
        return {
            name: _extent(name, entry, 8 + length, size)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = error if isinstance(error, ValueError) else f"its header is none: {error!r}"
        raise ValueError(f"{path}: cannot be read as safetensors ({told})") from None


def _extent(name: str, entry: dict[str, Any], begin: int, size: int) -> tuple[int, int]:
    """Return where a tensor lies; ValueError, a reason, if that cannot be."""
    first, last = entry["data_offsets"]
    if not (type(first) is type(last) is int and 0 <= first <= last <= size - begin):
        raise ValueError(f"{name!r} is said to lie at {first!r} to {last!r} of {size - begin:,}")
    dims = len(entry["shape"])
    if dims > _MAX_DIMENSIONS:
        raise ValueError(f"{name!r} has {dims:,} dimensions; at most {_MAX_DIMENSIONS} are read")
    return begin + first, begin + last


def cut_into_shards(
    tensors: Mapping[str, TensorShape], max_bytes: int
) -> dict[str, dict[str, TensorShape]]:
    """Return what each file is to hold, in order: files of up to max_bytes, a tensor at least."""
    shards: list[dict[str, TensorShape]] = [{}]
    size = 0
    for name, shape in tensors.items():
        if shards[-1] and size + shape.num_bytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += shape.num_bytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards)
    }


def write_shard(
    path: Path,
    tensors: Mapping[str, TensorShape],
    make: Callable[[str], Tensor],
) -> None:
    """Write a file, of which one tensor at a time is in memory; it appears when it is whole.

    Args:
        make: returns the tensor of a name, of its shape and dtype
    Raises: ValueError naming the file, if it cannot be written
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in tensors.items():
        offsets = [begin, begin + shape.num_bytes]
        header[name] = {
            "dtype": DTYPES[shape.dtype],
            "shape": list(shape.shape),
            "data_offsets": offsets,
        }
        begin = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, shape in tensors.items():
                tensor = make(name)
                assert (tuple(tensor.shape), tensor.dtype) == shape, name
                file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
                del tensor
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(f"{new}: cannot be written ({error.strerror})") from None
    new.rename(path)


def write_index(folder: Path, shards: Mapping[str, Sequence[str] | Mapping[str, object]]) -> None:
    """Write the index of several files; none is needed where there is one."""
    if list(shards) == [SINGLE]:
        return
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    total = sum((folder / name).stat().st_size for name in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
