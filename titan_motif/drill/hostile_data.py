"""Hostile data: documents, conversations and tables, and sources that somebody else prepared."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from titan_motif.components.curriculum.sources import TokenFile
from titan_motif.components.file_hashes import write_record
from titan_motif.components.preparation.inputs import find_inputs
from titan_motif.components.preparation.manifest import (
    FORMAT,
    MANIFEST,
    load_manifest,
    verify_files,
)
from titan_motif.components.preparation.readers import (
    MAX_LINE_BYTES,
    plan_units,
    read_rows,
    read_unit,
)
from titan_motif.components.preparation.units import BadLine
from titan_motif.components.sft.conversations import read_conversation
from titan_motif.corpus import manifest as corpus
from titan_motif.drill.hostile_case import CANARY, Case, Place


def _read_documents(folder: Path) -> list[Any]:
    """Return the documents of a folder, as `data prepare` reads them; ValueError at a bad line."""
    units = plan_units(find_inputs([str(folder)]), "text", "")
    return [_good(one) for unit in units for one in read_unit(unit, "text", "")]


def _read_conversations(folder: Path) -> list[Any]:
    """Return the conversations of a folder, as fine-tuning reads them."""
    rows = [_good(row) for one in find_inputs([str(folder)]) for row in read_rows(one)]
    found = [read_conversation(row) for _, row in rows]
    for one in found:
        if isinstance(one, str):
            raise ValueError(one)
    return found


def _good(one: Any) -> Any:
    if isinstance(one, BadLine):
        raise ValueError(str(one))
    return one


def _read_split(folder: Path) -> list[Any]:
    file = TokenFile(folder)
    return [file.tokens[:64], file.sampled_range(), file.fingerprint()]


def _read_source(folder: Path) -> list[Any]:
    manifest = load_manifest(folder)
    problems = list(verify_files(folder, manifest))
    if problems:
        raise ValueError(problems[0])
    return [manifest, _read_split(folder / "train")]


# ---- documents and conversations


def _lines(place: Place, *lines: str | bytes) -> None:
    content = [line if isinstance(line, bytes) else line.encode() for line in lines]
    place.write("a.jsonl", b"\n".join(content))


def _call(arguments: str) -> str:
    call = {"function": {"name": "f", "arguments": arguments}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    return json.dumps({"messages": turns})


_DEEP = "[" * 200_000

_DOCUMENTS: dict[str, Callable[[Place], Any]] = {
    "a line over the limit": lambda p: _lines(p, b'{"text": "' + b"a" * MAX_LINE_BYTES + b'"}'),
    "600 MB packed into one": lambda p: _packed(p, 6),
    "a link out": lambda p: p.link_out("a.jsonl", json.dumps({"text": CANARY})),
    "a text of a terabyte": lambda p: p.sparse("a.txt", 1 << 40),
    "a Parquet file of 2^31 bytes of metadata": lambda p: p.write(
        "a.parquet", b"PAR1" + bytes(64) + struct.pack("<I", 2**31 - 1) + b"PAR1"
    ),
    "an Arrow file of texts that lie elsewhere": lambda p: _arrow(p, 1 << 30),
    "a data set that names a file outside": lambda p: _saved_set(p, "../outside/secret.arrow"),
}

_CONVERSATIONS: dict[str, Callable[[Place], Any]] = {
    "a call nested 200,000 deep": lambda p: _lines(p, _call(_DEEP)),
}


def _packed(place: Place, times: int) -> None:
    """Write a line of so many times 100 MB, packed."""
    place.write("a.jsonl.gz", gzip.compress(bytes(100_000_000), 1) * times)


def _table() -> pa.Table:
    return pa.table({"text": [CANARY]})


def _arrow(place: Place, second_offset: int) -> None:
    """Write texts whose second begins where the file has nothing."""
    offsets = pa.py_buffer(struct.pack("<3i", 0, second_offset, 5))
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"hello")])
    batch = pa.record_batch([texts], ["text"])
    with pa.ipc.new_file(str(place.inside / "a.arrow"), batch.schema) as file:
        file.write_batch(batch)


def _saved_set(place: Place, name: str) -> None:
    """Write what `datasets` saves, its rows in a file outside."""
    with pa.ipc.new_stream(str(place.outside / "secret.arrow"), _table().schema) as file:
        file.write_table(_table())
    features = {"text": {"dtype": "string", "_type": "Value"}}
    place.write("dataset_info.json", json.dumps({"features": features}))
    state = {
        "_data_files": [{"filename": name}],
        "_fingerprint": "0",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    place.write("state.json", json.dumps(state))


# ---- prepared sources


def _array(place: Place, header: dict[str, Any] | str, data: bytes = bytes(16)) -> None:
    """Write a file of an array by its header, which numpy reads as a literal of Python."""
    text = (header if isinstance(header, str) else repr(header)).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text))
    place.write("tokens.npy", start + text + data)


def _shape(*shape: int, kind: str = "<u4") -> dict[str, Any]:
    return {"descr": kind, "fortran_order": False, "shape": shape}


def _objects(place: Place) -> None:
    _array(place, _shape(1, kind="|O"), place.pickled())


def _falling(place: Place) -> None:
    np.save(place.inside / "tokens.npy", np.arange(8, dtype=np.uint32))
    offsets = np.array([0, 1 << 62, -5, 8], dtype=np.int64)
    np.save(place.inside / "document_offsets.npy", offsets)


def _linked_tokens(place: Place) -> None:
    np.save(place.outside / "secret.npy", np.frombuffer(CANARY.encode(), dtype=np.uint8))
    (place.inside / "tokens.npy").symlink_to(place.outside / "secret.npy")


_SPLITS: dict[str, Callable[[Place], Any]] = {
    "of objects, a pickle": _objects,
    "of 2^40 tokens in 16 bytes": lambda p: _array(p, _shape(1 << 40)),
    "with a call for a header": lambda p: _array(p, f"__import__('os').system({p.command!r})"),
    "whose documents go backwards": _falling,
    "that is a link out": _linked_tokens,
}


def _source(place: Place, files: Any, **more: Any) -> None:
    (place.inside / "train").mkdir()
    np.save(place.inside / "train/tokens.npy", np.arange(8, dtype=np.uint32))
    place.secret("secret.npy")
    content = {"splits": {}, "tokenizer": {}, "inputs": [], "files": files, **more}
    write_record(place.inside / MANIFEST, {"format": FORMAT, **content})


_RECORD = {"bytes": len(CANARY), "sha256": "0" * 64}

_SOURCES: dict[str, Callable[[Place], Any]] = {
    "whose manifest goes up": lambda p: _source(p, {"../outside/secret.npy": _RECORD}),
    "whose manifest is a link out": lambda p: p.link_out(MANIFEST, json.dumps({"a": CANARY})),
}


def _built_in(place: Place) -> None:
    """Write a built-in corpus whose manifest goes up."""
    place.secret("secret.npy")
    files = {"../outside/secret.npy": _RECORD}
    place.write(MANIFEST, json.dumps({"format": corpus.FORMAT, "settings": {}, "files": files}))


_QUICK = ("a link out", "of objects, a pickle", "whose manifest goes up")

CASES = (
    *(
        Case(f"documents: {name}", build, _read_documents, is_quick=name in _QUICK)
        for name, build in _DOCUMENTS.items()
    ),
    *(
        Case(f"conversations: {name}", build, _read_conversations)
        for name, build in _CONVERSATIONS.items()
    ),
    *(
        Case(f"tokens {name}", build, _read_split, is_quick=name in _QUICK)
        for name, build in _SPLITS.items()
    ),
    *(
        Case(f"a source {name}", build, _read_source, is_quick=name in _QUICK)
        for name, build in _SOURCES.items()
    ),
    Case("a built-in corpus whose manifest goes up", _built_in, corpus.load_manifest),
)
