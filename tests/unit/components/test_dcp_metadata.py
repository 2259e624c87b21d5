"""The metadata of a DCP directory are read as data: nothing that they name is called."""

import io
import os
import pickle
import pickletools
import time
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
)

from titan_motif.components import dcp_metadata
from titan_motif.components.dcp_metadata import METADATA, read_metadata
from titan_motif.components.dcp_reader import CheckedPlanner, CheckedReader
from titan_motif.components.sealing_writer import SealingWriter

STATE = {
    "weight": torch.arange(6.0).view(2, 3),
    "half": torch.ones(4, dtype=torch.bfloat16),
    "state": {"step": 7, "name": "a", "rates": [0.1, None, True], "betas": (0.9, 0.95)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dcp.save(STATE, storage_writer=SealingWriter(tmp_path / "step"), no_dist=True)
    return tmp_path / "step"


def theirs(folder: Path) -> Metadata:
    return FileSystemReader(folder).read_metadata()


def change(folder: Path, **fields: object) -> None:
    """Write a folder's metadata anew, some of their fields changed."""
    metadata = theirs(folder)
    for name, value in fields.items():
        setattr(metadata, name, value)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    ("protocol", "is_by_name"), [(2, False), (3, False), (4, False), (4, True), (5, False)]
)
def test_what_is_read_is_what_torch_reads(
    folder: Path, monkeypatch, protocol: int, is_by_name: bool
):
    if is_by_name:  # as Python 3.11.2 has it
        by_name = lambda value, _: (getattr, (type(value), value.name))  # noqa: E731
        monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    (folder / METADATA).write_bytes(pickle.dumps(theirs(folder), protocol))
    found, expected = read_metadata(folder), theirs(folder)
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.storage_data == expected.storage_data


def test_a_state_comes_back_through_the_checked_reader(folder: Path):
    found = {
        "weight": torch.zeros(2, 3),
        "half": torch.zeros(4, dtype=torch.bfloat16),
        "state": {"step": 0, "name": "", "rates": [0, 0, 0], "betas": (0, 0)},
    }
    reader, planner = CheckedReader(folder), CheckedPlanner()
    dcp.load(found, storage_reader=reader, planner=planner, no_dist=True)
    assert torch.equal(found["weight"], STATE["weight"])
    assert torch.equal(found["half"], STATE["half"])
    assert found["state"] == STATE["state"]


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["all", "planner_data", "state_dict_metadata"])
def test_a_pickle_that_would_run_is_refused(folder: Path, tmp_path: Path, place: str):
    payload = Payload(tmp_path / "ran")
    if place == "all":
        (folder / METADATA).write_bytes(pickle.dumps(payload))
    else:
        change(folder, **{place: {"a": payload}})
    with pytest.raises(ValueError, match=r"\.metadata: .*it names '\w+.system', which no metadata"):
        read_metadata(folder)
    assert not (tmp_path / "ran").exists()


def test_an_object_that_would_run_is_refused(folder: Path, tmp_path: Path):
    dcp.save(
        {"state": Payload(tmp_path / "ran")},
        storage_writer=SealingWriter(tmp_path / "other"),
        no_dist=True,
    )
    reader, planner = CheckedReader(tmp_path / "other"), CheckedPlanner()
    with pytest.raises(BaseException, match="state holds more than tensors, numbers and"):
        dcp.load({"state": 0}, storage_reader=reader, planner=planner, no_dist=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "damage",
    [
        *("outside", "missing", "long", "negative", "huge", "shape", "larger", "beyond", "roles"),
        *("hole", "dimensions", "no dimensions"),
    ],
)
def test_metadata_that_do_not_fit_the_files_are_refused(folder: Path, damage: str):
    metadata = theirs(folder)
    where = next(iter(metadata.storage_data.values()))
    entry = metadata.state_dict_metadata["weight"]
    if damage in ("outside", "missing"):
        where.relative_path = {"outside": "../step/__0_0.distcp", "missing": "other"}[damage]
    elif damage in ("long", "negative"):
        where.length = {"long": 1 << 40, "negative": -5}[damage]
    elif damage == "larger":  # than its parts are
        entry.size = torch.Size([entry.size[0] + 1, *entry.size[1:]])
    elif damage == "beyond":
        entry.chunks[0].offsets = torch.Size([1] * len(entry.size))
    elif damage == "hole":  # a half twice
        entry.chunks = [ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([1, 3]))] * 2
    elif damage == "dimensions":
        other = ChunkStorageMetadata(torch.Size([0]), torch.Size([0]))
        entry.chunks = [*entry.chunks, other]
    elif damage == "no dimensions":
        entry.chunks[0].offsets = torch.Size([])
    elif damage == "roles":  # an index where a place belongs
        index = next(iter(metadata.storage_data))
        metadata.storage_data[index] = index
    else:
        entry.size = {"huge": torch.Size([1 << 40, 1 << 20]), "shape": "2 x 3"}[damage]
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"\.metadata: cannot be read as a checkpoint's metadata"):
        read_metadata(folder)


def test_a_tensor_in_which_a_part_is_missing_is_not_begun_from(folder: Path):
    metadata = theirs(folder)
    half = ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([1, 3]))
    metadata.state_dict_metadata["weight"].chunks = [half, half]
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    found = {"weight": torch.full((2, 3), 5.0)}
    with pytest.raises(BaseException, match="two parts of a tensor lie over one another"):
        dcp.load(
            found, storage_reader=CheckedReader(folder), planner=CheckedPlanner(), no_dist=True
        )
    assert found["weight"].eq(5).all()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"\x80\x04.", b"K\x01K\x02.", b"2" * 40])
def test_what_is_no_pickle_is_refused(folder: Path, content: bytes):
    (folder / METADATA).write_bytes(content)
    with pytest.raises(ValueError, match=r"\.metadata: cannot be read as a checkpoint's metadata"):
        read_metadata(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02(" + b"}" * 2_000_000 + b"t.",
        b"\x80\x02]" + b"(" * 1_000_000 + b"e" * 1_000_000 + b".",
    ],
)
def test_instructions_that_no_files_need_end_soon(folder: Path, content: bytes):
    (folder / METADATA).write_bytes(content)
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"\.metadata: .*more than 20\d,\d\d\d instructions"):
        read_metadata(folder)
    assert time.process_time() - begin < 2


def test_metadata_may_be_as_long_as_what_is_saved_needs(folder: Path, monkeypatch):
    monkeypatch.setattr(dcp_metadata, "_FREE_INSTRUCTIONS", 0)
    (folder / METADATA).write_bytes(pickle.dumps(theirs(folder), protocol=2))
    num = sum(1 for _ in pickletools.genops((folder / METADATA).read_bytes()))
    data = (folder / "__0_0.distcp").stat().st_size
    assert data / num > 2 * dcp_metadata._BYTES_OF_AN_INSTRUCTION  # half of what is allowed
    assert read_metadata(folder).state_dict_metadata == theirs(folder).state_dict_metadata


def test_a_record_of_many_fields_is_refused(folder: Path):
    metadata = theirs(folder)
    for number in range(20):
        setattr(metadata.state_dict_metadata["weight"], f"field_{number}", number)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"a TensorStorageMetadata has 23 fields"):
        read_metadata(folder)


def test_an_item_that_becomes_more_in_memory_is_refused(folder: Path):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    metadata = theirs(folder)
    for where in metadata.storage_data.values():
        where.relative_path, where.offset, where.length = "bomb", 0, len(bomb.getvalue())
    (folder / "bomb").write_bytes(bomb.getvalue())
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    reader, planner = CheckedReader(folder), CheckedPlanner()
    with pytest.raises(BaseException, match="bytes that hold 10,000,000"):
        dcp.load(
            {"weight": torch.zeros(2, 3)}, storage_reader=reader, planner=planner, no_dist=True
        )
