"""The .metadata of a DCP directory, read as data: it is a pickle, and none is run here.

A pickle is a program that makes objects; Python's own reader calls whatever it names. Here its
instructions are read one by one (`pickletools.genops`). Those that DCP's metadata need put together
plain records, in which names of classes are names; any other is refused. Of the records DCP's
objects are made, their numbers checked against the files that lie there, before memory is taken.
"""

import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from titan_motif.components.dcp_parts import check_disjoint
from titan_motif.components.foreign_files import MAX_RECORD_BYTES, check_file, inside

METADATA = ".metadata"

_DCP = "torch.distributed.checkpoint"
_KNOWN = {
    (f"{_DCP}.metadata", "BytesStorageMetadata"),
    (f"{_DCP}.metadata", "ChunkStorageMetadata"),
    (f"{_DCP}.metadata", "Metadata"),
    (f"{_DCP}.metadata", "MetadataIndex"),
    (f"{_DCP}.metadata", "StorageMeta"),
    (f"{_DCP}.metadata", "TensorProperties"),
    (f"{_DCP}.metadata", "TensorStorageMetadata"),
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("builtins", "getattr"),  # how Python 3.11.2, say, names a value of an enumeration
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}
"""What metadata name, dtypes aside: names alone, nothing is looked up."""


class _Name(NamedTuple):
    """The name of a class or a function."""

    text: str


class _Record:
    """An object as a pickle describes it: what it is called with, and its state."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Any) -> None:
        self.name, self.arguments, self.state = name, arguments, None


class _Pairs(list[tuple[Any, Any]]):
    """A dictionary's entries; their keys need no hash."""


_MARK = object()
_MAX_FIELDS = 16
"""Of an object; DCP's have up to 5. They are read again wherever a record names them."""
_FREE_INSTRUCTIONS = 200_000
"""A third of a second."""
_BYTES_OF_AN_INSTRUCTION = 4
"""In the files beside: what is saved takes about 90 instructions and 1,100 bytes or more there."""


def read_metadata(folder: Path) -> Metadata:
    """Return the metadata of a DCP directory, without what its planner wrote for other readers.

    Raises: ValueError naming the file if it is missing, too large, no metadata, or does not fit
            the files beside it
    """
    path = folder / METADATA
    try:
        check_file(inside(folder, METADATA), MAX_RECORD_BYTES)
        maker = _Maker(folder)
        limit = _FREE_INSTRUCTIONS + maker.num_bytes // _BYTES_OF_AN_INSTRUCTION
        return maker.metadata(_Reader().read(path.read_bytes(), limit))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; its save did not finish") from None
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RecursionError) as error:
        told = error if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{path}: cannot be read as a checkpoint's metadata ({told})") from None


class _Reader:
    """Follows a pickle's instructions without any of their effects."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, content: bytes, max_instructions: int) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if number == max_instructions:
                raise ValueError(f"more than {number:,} instructions, for files of few bytes")
            follow = _INSTRUCTIONS.get(opcode.name)
            if follow is None:
                raise ValueError(f"it has the instruction {opcode.name}, which none needs")
            follow(self, argument)
        (found,) = self.stack
        return found

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("its instructions do not fit one another")
        found, self.stack[at:] = self.stack[at + 1 :], []
        return found

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise ValueError("its instructions do not fit one another")
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def push_name(self, module: Any, name: Any) -> None:
        value = vars(torch).get(name) if module == "torch" else None
        if isinstance(value, torch.dtype):
            self.stack.append(value)
        elif (module, name) in _KNOWN:
            self.stack.append(_Name(name))
        else:
            raise ValueError(f"it names {f'{module}.{name}'[:100]!r}, which no metadata need")

    def make(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.stack.append(_Record(name.text, arguments))

    def build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Record):
            raise ValueError("it sets the state of what is no object")
        self.stack[-1].state = state

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("it appends to what is no list")
        self.stack[-1] += items

    def update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not _Pairs or len(items) % 2:
            raise ValueError("it sets entries of what is no dictionary")
        self.stack[-1] += zip(items[::2], items[1::2], strict=True)

    def update_once(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, name)


_INSTRUCTIONS: dict[str, Callable[[_Reader, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE"),
        _Reader.push,
    ),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.push(_MARK),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push(_Pairs()),
    "TUPLE1": lambda m, _: m.push_tuple(1),
    "TUPLE2": lambda m, _: m.push_tuple(2),
    "TUPLE3": lambda m, _: m.push_tuple(3),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.update_once(),
    "SETITEMS": lambda m, _: m.update(m.since_mark()),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    **dict.fromkeys(
        ("BINPUT", "LONG_BINPUT"), lambda m, number: m.memo.__setitem__(number, m.stack[-1])
    ),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, number: m.push(m.memo[number])),
    "GLOBAL": lambda m, names: m.push_name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.make()),
    "BUILD": lambda m, _: m.build(),
}


class _Parts(NamedTuple):
    """The parts of a tensor, no two of which share an element."""

    chunks: list[ChunkStorageMetadata]
    ends: tuple[int, ...] | None
    """The largest by dimension; None of no parts."""
    num_elements: int


class _Maker:
    """Makes DCP's objects of records, each once: a pickle may name one a million times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = (path for path in folder.iterdir() if path.is_file() and path.name != METADATA)
        self.sizes = {path.name: path.stat().st_size for path in files}
        self.num_bytes = sum(self.sizes.values())
        self.inside: set[str] = set()
        self.made: dict[tuple[str, int], Any] = {}

    def metadata(self, record: Any) -> Metadata:
        values = _state(record, "Metadata")
        tensors = {_text(k): self.once(v, self.entry) for k, v in values["state_dict_metadata"]}
        storage = {
            self.once(k, self.index): self.once(v, self.storage)
            for k, v in values["storage_data"] or ()
        }
        return Metadata(tensors, storage_data=storage)

    def once(self, record: Any, make: Callable[[Any], Any]) -> Any:
        key = make.__name__, id(record)  # a record may be named where something else belongs
        if key not in self.made:
            self.made[key] = make(record)
        return self.made[key]

    def entry(self, record: Any) -> TensorStorageMetadata | BytesStorageMetadata:
        if _name(record) == "BytesStorageMetadata":
            return BytesStorageMetadata()
        values = _state(record, "TensorStorageMetadata")
        properties = values["properties"]
        dtype = properties.state[0] if _name(properties) == "TensorProperties" else None
        if not isinstance(dtype, torch.dtype):
            raise ValueError("a tensor's properties have no dtype")
        size = _size(values["size"])
        num_elements = math.prod(size)
        num_bytes = num_elements * dtype.itemsize
        if num_bytes > self.num_bytes:
            raise ValueError(f"a tensor of {num_bytes:,} bytes in files of {self.num_bytes:,}")
        parts = self.once(values["chunks"], self.parts)
        if parts.ends is not None and not _is_within(parts.ends, size):
            raise ValueError(f"a part lies outside of its tensor {tuple(size)}")
        if parts.num_elements != num_elements:
            raise ValueError(f"the parts of a tensor {tuple(size)} are not as large as it is")
        return TensorStorageMetadata(TensorProperties(dtype=dtype), size, parts.chunks)

    def parts(self, records: Any) -> _Parts:
        chunks = [self.once(record, self.chunk) for record in records]
        if len({len(chunk.sizes) for chunk in chunks}) > 1:
            raise ValueError("the parts of a tensor differ in their number of dimensions")
        check_disjoint(chunks)
        ends = [
            tuple(b + n for b, n in zip(chunk.offsets, chunk.sizes, strict=True))
            for chunk in chunks
        ]
        largest = tuple(map(max, zip(*ends, strict=True))) if ends else None
        return _Parts(chunks, largest, sum(math.prod(chunk.sizes) for chunk in chunks))

    def chunk(self, record: Any) -> ChunkStorageMetadata:
        values = _state(record, "ChunkStorageMetadata")
        offsets, sizes = _size(values["offsets"]), _size(values["sizes"])
        if len(offsets) != len(sizes):
            raise ValueError("a part begins in other dimensions than it has")
        return ChunkStorageMetadata(offsets, sizes)

    def index(self, record: Any) -> MetadataIndex:
        values = _state(record, "MetadataIndex")
        offset, number = values.get("offset"), values.get("index")
        if type(number) not in (int, type(None)):
            raise ValueError("the number of a part is none")
        return MetadataIndex(
            _text(values["fqn"]), None if offset is None else _size(offset), number
        )

    def storage(self, record: Any) -> _StorageInfo:
        values = _state(record, "_StorageInfo")
        name, begin, length = _text(values["relative_path"]), values["offset"], values["length"]
        if values.get("transform_descriptors"):
            raise ValueError(f"{name!r} is compressed, which is not read")
        if name not in self.inside:  # once: a file holds thousands of parts
            inside(self.folder, name)
            self.inside.add(name)
        if name not in self.sizes:
            raise ValueError(f"it names {name!r}, which is not there")
        size = self.sizes[name]
        if not (type(begin) is type(length) is int and begin >= 0 and length >= 0):
            raise ValueError(f"a tensor of {length!r} bytes at {begin!r} of {name!r}")
        if begin + length > size:
            raise ValueError(f"{name!r} has {size:,} bytes; its .metadata needs {begin + length:,}")
        return _StorageInfo(name, begin, length)


def _is_within(ends: tuple[int, ...], size: torch.Size) -> bool:
    return len(ends) == len(size) and all(end <= n for end, n in zip(ends, size, strict=True))


def _name(record: Any) -> str | None:
    return record.name if isinstance(record, _Record) else None


def _state(record: Any, name: str) -> dict[str, Any]:
    """Return an object's fields; ValueError unless it is what is needed there."""
    if _name(record) != name or not isinstance(record.state, _Pairs):
        raise ValueError(f"a {name} is needed where something else stands")
    if len(record.state) > _MAX_FIELDS:
        raise ValueError(f"a {name} has {len(record.state):,} fields")
    return {_text(key): value for key, value in record.state}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a name is {type(value).__name__}")
    return value


def _size(record: Any) -> torch.Size:
    numbers = record.arguments[0] if _name(record) == "Size" else None
    if not isinstance(numbers, tuple | list) or len(numbers) > 64:
        raise ValueError("a tensor's shape is none")
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise ValueError("a tensor's shape has what is no number of elements")
    return torch.Size(numbers)
