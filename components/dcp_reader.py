"""DCP's reader, for directories of anybody: no pickle of theirs is run.

torch's own reader unpickles the .metadata, and its planner whatever is no tensor. Here the metadata
are read as data (`dcp_metadata.py`), and of tensors and of all else only what torch calls weights:
tensors, numbers, texts, and lists and dictionaries of these.
"""

import io
import os
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from titan_motif.components.dcp_metadata import read_metadata

NO_DATA = "holds more than tensors, numbers and texts, which is not read"


class CheckedReader(FileSystemReader):
    """Reads a DCP directory; ValueError, one line, for metadata that are not what DCP writes.

    Args:
        metadata: what `read_metadata` has found in it already
    """

    def __init__(self, path: str | Path, metadata: Metadata | None = None) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata, checked against the files that lie there."""
        metadata = self._metadata or read_metadata(Path(self.path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        """Return an item's bytes, once it is known that they do not become more in memory."""
        with zipfile.ZipFile(_Stretch(file, sinfo.offset, sinfo.length)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > sinfo.length:
            raise ValueError(f"{sinfo.relative_path}: {sinfo.length:,} bytes that hold {size:,}")
        return super()._slice_file(file, sinfo)


class _Stretch:
    """A stretch of a file, as `zipfile` reads one: torch's own cannot be read from its end."""

    def __init__(self, file: Any, begin: int, length: int) -> None:
        self._file, self._begin, self._length, self._at = file, begin, length, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = min(max(origin + offset, 0), self._length)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = self._length - self._at
        self._file.seek(self._begin + self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content


class CheckedPlanner(DefaultLoadPlanner):
    """Loads what is no tensor as plain values."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Hand over an item that torch reads without running it.

        Raises: ValueError if it names anything else
        """
        harmless = io.BytesIO()
        try:
            torch.save(torch.load(value, weights_only=True), harmless)
        except UnpicklingError:
            raise ValueError(f"{read_item.dest_index.fqn} {NO_DATA}") from None
        harmless.seek(0)
        super().load_bytes(read_item, harmless)
