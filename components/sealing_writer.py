"""DCP's writer, with a seal: each rank hashes what it wrote, the first one seals it at the end."""

from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from titan_motif.components.dcp_metadata import read_metadata
from titan_motif.components.foreign_files import inside
from titan_motif.components.seal import Part, break_seal, hash_file, write_seal


@dataclass(frozen=True)
class _SealedResult(WriteResult):
    """What DCP tells the first rank of an item, and the record of its file with the first item."""

    file: tuple[str, dict[str, Any]] | None = None


class SealingWriter(FileSystemWriter):
    """Writes a DCP directory and seals it after its .metadata."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files and hash them, from what the operating system still holds."""
        results = super().write_data(plan, planner).wait()
        by_file = defaultdict(list)
        for result in results:
            by_file[result.storage_data.relative_path].append(result)
        sealed: list[WriteResult] = []
        for name, items in by_file.items():
            record = hash_file(
                Path(self.path) / name, [_part(item.index, item.storage_data) for item in items]
            )
            for i, item in enumerate(items):
                values = {field.name: getattr(item, field.name) for field in fields(item)}
                sealed.append(_SealedResult(**values, file=(name, record) if i == 0 else None))
        done: Future[list[WriteResult]] = Future()
        done.set_result(sealed)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the .metadata, then the seal, of what lies there already too; on the first rank."""
        super().finish(metadata, results)
        folder = Path(self.path)
        files = dict(
            result.file
            for of_rank in results
            for result in of_rank
            if isinstance(result, _SealedResult) and result.file is not None
        )
        _seal(folder, files)


def _seal(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Seal these files and all others of the folder, the .metadata among them."""
    names = [x.name for x in folder.iterdir() if x.is_file() and x.name not in files]
    try:
        others = {name: hash_file(inside(folder, name)) for name in names}
    except ValueError as error:
        raise ValueError(f"{folder}: cannot be sealed: {error}") from None
    write_seal(folder, files | others)


def _part(index: MetadataIndex, where: Any) -> Part:
    at = "" if index.offset is None or not any(index.offset) else str(list(index.offset))
    return Part(index.fqn + at, where.offset, where.offset + where.length)


def seal_dcp(folder: Path) -> None:
    """Seal a DCP directory that something else wrote.

    Raises: ValueError if its .metadata is missing or damaged, or names what is not there
    """
    break_seal(folder)
    by_file = defaultdict(list)
    for index, where in read_metadata(folder).storage_data.items():
        by_file[where.relative_path].append(_part(index, where))
    files = {name: hash_file(folder / name, parts) for name, parts in by_file.items()}
    _seal(folder, files)
