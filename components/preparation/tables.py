"""Documents in tables: Parquet, Arrow files and streams, and Hugging Face datasets on disk.

The only file that knows pyarrow and datasets. What they read is checked as a stranger's: pyarrow
takes the offsets of an Arrow file as they are, datasets the names of files in a folder's state.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from titan_motif.components.foreign_files import check_file, inside, read_json
from titan_motif.components.preparation.units import (
    BadLine,
    Document,
    Unit,
    field_problem,
    licence_of,
    text_problem,
)

MAX_FILE_BYTES = 1 << 50
BATCH_ROWS = 1024
"""Rows in memory at once, of a row group or of a dataset."""


def is_dataset(folder: Path) -> bool:
    """Return whether a folder is what `save_to_disk` of a Dataset or a DatasetDict writes."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def plan_parquet(path: Path, fields: tuple[str, ...], unit_bytes: int) -> list[Unit]:
    """Cut a Parquet file into units of whole row groups."""
    with _open_parquet(path) as file:
        _check_fields(file.schema_arrow, path, fields)
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    return _cut("parquet", path, sizes, unit_bytes)


def plan_arrow(path: Path, fields: tuple[str, ...], unit_bytes: int) -> list[Unit]:
    """Cut an Arrow file or stream into units of whole record batches."""
    with pa.memory_map(str(path)) as source:
        schema, batches = _open_arrow(source, path)
        _check_fields(schema, path, fields)
        sizes = []
        try:
            sizes += [(batch.num_rows, batch.nbytes) for batch in batches]
        except (pa.ArrowException, OSError) as error:
            raise _broken(path, "an Arrow file", error) from None
    return _cut("arrow", path, sizes, unit_bytes)


def plan_dataset(folder: Path, fields: tuple[str, ...], unit_bytes: int) -> list[Unit]:
    """Cut a Hugging Face dataset into units of rows.

    Raises: ValueError if the folder holds several splits: each is a folder of its own to name
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        if len(splits) != 1:
            raise ValueError(
                f"{folder}: holds the splits {', '.join(splits) or 'none'}; name one of them, "
                f"such as {folder / (splits[0] if splits else 'train')}"
            )
        try:
            folder = inside(folder, splits[0])
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
    dataset = _load_dataset(str(folder))
    _check_fields(dataset.features.arrow_schema, folder, fields)
    num_rows = len(dataset)
    row_bytes = max(dataset.data.nbytes // max(len(dataset.data), 1), 1)
    step = max(unit_bytes // row_bytes, 1)
    return [
        Unit("huggingface", (str(folder),), begin, end, (end - begin) * row_bytes, begin)
        for begin in range(0, num_rows, step)
        for end in [min(begin + step, num_rows)]
    ]


PLANS = {"parquet": plan_parquet, "arrow": plan_arrow, "huggingface": plan_dataset}
"""How a table of each format is cut into units."""


def read_documents(unit: Unit, text_field: str, licence_field: str) -> Iterator[Document | BadLine]:
    """Yield the documents of a unit of a table, and the rows that are none."""
    path = Path(unit.files[0])
    columns = [text_field, licence_field] if licence_field else [text_field]
    row = unit.rows_before
    try:
        for batch in _BATCHES[unit.format](path, unit, columns):
            texts = _as_text(batch.column(text_field))
            licences = (
                batch.column(licence_field).to_pylist()
                if licence_field
                else [None] * batch.num_rows
            )
            for value, licence in zip(texts, licences, strict=True):
                row += 1
                yield _document(value, licence, str(path), row, text_field)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, f"a file of {unit.format}", error) from None


def read_rows(format_: str, path: Path) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    """Yield all rows of a table with all their fields, numbered from 1.

    What a row does not have is not told from null in a table: such fields are left out. A map is
    an object, as in JSON.
    """
    number = 0
    try:
        for unit in PLANS[format_](path, (), 1 << 62):
            for batch in _BATCHES[format_](Path(unit.files[0]), unit, None):
                try:
                    rows = batch.to_pylist()
                except UnicodeDecodeError as error:
                    reason = f"not UTF-8 ({error.reason}), in one of {batch.num_rows} rows"
                    yield BadLine(str(path), number + 1, reason, "")
                    rows = []
                kind = pa.struct(list(batch.schema))
                for offset, row in enumerate(rows, start=1):
                    yield number + offset, _as_json(row, kind)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, f"a file of {format_}", error) from None


def _as_json(value: Any, kind: pa.DataType) -> Any:
    """Return a value as JSON would hold it: pyarrow's maps are lists of pairs."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        inner = ((field.name, field.type) for field in kind)
        return {
            name: _as_json(value[name], type_) for name, type_ in inner if value[name] is not None
        }
    if pa.types.is_map(kind):
        return {key: _as_json(inner, kind.item_type) for key, inner in value}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_as_json(inner, kind.value_type) for inner in value]
    return value


def _document(
    value: pa.Scalar, licence: Any, file: str, row: int, text_field: str
) -> Document | BadLine:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raw = value.as_buffer().to_pybytes()
        excerpt = raw[:200].decode(errors="replace")
        return BadLine(file, row, f"not UTF-8 ({error.reason} at byte {error.start})", excerpt)
    problem = text_problem(text, text_field)
    if problem is not None:
        return BadLine(file, row, problem, "")
    return Document(text, licence_of(licence))


def _parquet_batches(path: Path, unit: Unit, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    with _open_parquet(path) as file:
        groups = list(range(unit.begin, unit.end))
        yield from file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns)


def _arrow_batches(path: Path, unit: Unit, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        _, batches = _open_arrow(source, path)
        for index, batch in enumerate(batches):
            if index >= unit.end:
                return
            if index >= unit.begin:
                _check_batch(batch)
                yield batch if columns is None else batch.select(columns)


def _dataset_rows(folder: Path, unit: Unit, columns: list[str] | None) -> Iterator[pa.Table]:
    dataset = _load_dataset(str(folder))
    dataset = (dataset if columns is None else dataset.select_columns(columns)).with_format("arrow")
    for begin in range(unit.begin, unit.end, BATCH_ROWS):
        table = dataset[begin : min(begin + BATCH_ROWS, unit.end)]
        _check_batch(table)
        yield table


_BATCHES = {"parquet": _parquet_batches, "arrow": _arrow_batches, "huggingface": _dataset_rows}


def _check_batch(batch: pa.RecordBatch | pa.Table) -> None:
    """Raise pa.ArrowInvalid if a value would be read from outside of a batch's memory.

    A text that is no UTF-8 is told later, by its row.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        for column in batch.columns:
            for part in getattr(column, "chunks", [column]):
                part.view(_of_bytes(part.type)).validate(full=True)


def _of_bytes(kind: pa.DataType) -> pa.DataType:
    """Return a type with bytes where another has texts."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.binary() if pa.types.is_string(kind) else pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_of_bytes(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_of_bytes(kind.key_type), _of_bytes(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = kind.value_field.with_type(_of_bytes(kind.value_type))
        return pa.list_(inner) if pa.types.is_list(kind) else pa.large_list(inner)
    return kind


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, "a Parquet file", error) from None


def _open_arrow(
    source: pa.MemoryMappedFile, path: Path
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return schema and record batches; what is not read of the map costs nothing."""
    try:
        file = pa.ipc.open_file(source)
        return file.schema, (file.get_batch(index) for index in range(file.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
    try:
        stream = pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, "an Arrow file or stream", error) from None
    return stream.schema, iter(stream)


@lru_cache(maxsize=4)
def _load_dataset(folder: str) -> Any:
    import datasets  # two seconds, which the other formats do not need

    try:
        _check_dataset(Path(folder))
        return datasets.load_from_disk(folder)
    except Exception as error:  # of hostile settings it raises anything
        raise _broken(Path(folder), "a dataset", error) from None


def _check_dataset(folder: Path) -> None:
    """Raise ValueError, a reason, if a dataset's own files name files outside of its folder."""
    read_json(inside(folder, "dataset_info.json"))
    for file in read_json(inside(folder, "state.json"))["_data_files"]:
        check_file(inside(folder, file["filename"]), MAX_FILE_BYTES)


def _cut(format_: str, path: Path, sizes: list[tuple[int, int]], unit_bytes: int) -> list[Unit]:
    """Join neighbouring parts, of (rows, bytes) each, until a unit is full."""
    units: list[Unit] = []
    begin = rows_before = num_rows = num_bytes = 0
    for index, (part_rows, part_bytes) in enumerate(sizes):
        num_rows, num_bytes = num_rows + part_rows, num_bytes + part_bytes
        if num_bytes >= unit_bytes or index == len(sizes) - 1:
            units.append(Unit(format_, (str(path),), begin, index + 1, num_bytes, rows_before))
            begin, rows_before = index + 1, rows_before + num_rows
            num_rows = num_bytes = 0
    return units


def _check_fields(schema: pa.Schema, path: Path, fields: tuple[str, ...]) -> None:
    """Raise ValueError unless a table has the fields, the first of them text."""
    if not fields:
        return
    for name in fields:
        if name not in schema.names:
            raise ValueError(f"{path}: {field_problem(schema.names, name)}")
    kind = schema.field(fields[0]).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (
        pa.types.is_string(value)
        or pa.types.is_large_string(value)
        or pa.types.is_string_view(value)
    ):
        raise ValueError(f"{path}: the field {fields[0]!r} is {kind}; text is needed")


def _as_text(column: Any) -> Any:
    """Return a column whose values are strings, kept as they are if they are no UTF-8."""
    is_plain = column.type in (pa.string(), pa.large_string())
    return column if is_plain else column.cast(pa.large_string())


def _broken(path: Path, needed: str, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0].rstrip(".")
    return ValueError(f"{path}: cannot be read as {needed} ({reason})")
