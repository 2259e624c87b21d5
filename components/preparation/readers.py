"""Inputs of several formats as documents, in units that can be read one by one.

JSONL (gzip too), Parquet, Arrow, plain text (a file is a document) and Hugging Face datasets on
disk. The units follow from the inputs alone, so that a restart finds the same ones.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from titan_motif.components.foreign_files import MAX_JSON_BYTES
from titan_motif.components.preparation import tables
from titan_motif.components.preparation.inputs import Input
from titan_motif.components.preparation.units import (
    TOO_DEEP,
    UNIT_BYTES,
    BadLine,
    Document,
    Unit,
    field_problem,
    licence_of,
    nesting_problem,
    size_problem,
    text_problem,
)

MAX_LINE_BYTES = MAX_JSON_BYTES

_MARK_OF_UTF_8 = b"\xef\xbb\xbf"
"""Some editors put it at the beginning of a file."""


def plan_units(
    inputs: Sequence[Input], text_field: str, licence_field: str, unit_bytes: int = UNIT_BYTES
) -> list[Unit]:
    """Cut the inputs into units of about as many bytes.

    Raises: ValueError if a file is broken or has not the fields; of JSONL the lines tell it later
    """
    if licence_field and all(one.format == "text" for one in inputs):
        raise ValueError(f"plain text has no fields; the licence field {licence_field!r} is none")
    fields = (text_field, licence_field) if licence_field else (text_field,)
    units: list[Unit] = []
    for one in inputs:
        path = Path(one.path)
        if one.format in tables.PLANS:
            units += tables.PLANS[one.format](path, fields, unit_bytes)
        elif one.format == "jsonl":
            units += _plan_lines(path, one.num_bytes, unit_bytes)
        elif units and units[-1].format == "text" and units[-1].num_bytes < unit_bytes:
            last = units[-1]
            size = last.num_bytes + one.num_bytes
            units[-1] = last._replace(files=(*last.files, one.path), num_bytes=size)
        else:
            units.append(Unit("text", (one.path,), 0, 0, one.num_bytes))
    return units


def read_unit(unit: Unit, text_field: str, licence_field: str) -> Iterator[Document | BadLine]:
    """Yield the documents of a unit in their order, and what is to be put aside.

    Raises: ValueError if a file as a whole is broken
    """
    if unit.format == "jsonl":
        return _read_lines(unit, text_field, licence_field)
    if unit.format == "text":
        return _read_texts(unit)
    return tables.read_documents(unit, text_field, licence_field)


def read_rows(one: Input) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    """Yield the rows of a file whole, each with its number from 1, and lines that hold none.

    Raises: ValueError if the file as a whole is broken, or if its format has no rows
    """
    if one.format == "text":
        raise ValueError(f"{one.path}: plain text has no rows; JSONL or a table is needed")
    if one.format != "jsonl":
        yield from tables.read_rows(one.format, Path(one.path))
        return
    for number, line in enumerate(_lines(Unit("jsonl", (one.path,), 0, one.num_bytes, 0)), 1):
        if line.strip():
            row = _parse_row(line)
            problem = row if isinstance(row, str) else nesting_problem(row)
            bad = None if problem is None else BadLine(one.path, number, problem, _excerpt(line))
            yield bad or (number, row)


def _plan_lines(path: Path, num_bytes: int, unit_bytes: int) -> Iterator[Unit]:
    if path.suffix == ".gz":  # can be read from its beginning alone
        yield Unit("jsonl", (str(path),), 0, num_bytes, num_bytes)
        return
    begin = 0
    with path.open("rb") as file:
        while begin < num_bytes:
            end = num_bytes
            if begin + unit_bytes < num_bytes:
                file.seek(begin + unit_bytes - 1)
                _skip_line(file)
                end = min(file.tell(), num_bytes)
            yield Unit("jsonl", (str(path),), begin, end, end - begin)
            begin = end


def _read_lines(unit: Unit, text_field: str, licence_field: str) -> Iterator[Document | BadLine]:
    path = unit.files[0]

    @cache
    def lines_before() -> int:
        """Count the lines before the unit; asked for by its first bad line."""
        return _count_lines(path, unit.begin)

    for number, line in enumerate(_lines(unit), 1):
        if not line.strip():
            continue
        found = _parse(line, text_field, licence_field)
        if isinstance(found, str):
            found = BadLine(path, lines_before() + number, found, _excerpt(line))
        yield found


def _excerpt(line: bytes) -> str:
    return line[:800].decode(errors="replace")[:200].rstrip("\r\n")


def _lines(unit: Unit) -> Iterator[bytes]:
    path = Path(unit.files[0])
    if path.suffix == ".gz":
        try:
            with gzip.open(path, "rb") as file:
                for number, (line, _) in enumerate(_bounded_lines(file)):
                    yield line.removeprefix(_MARK_OF_UTF_8) if number == 0 else line
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: cannot be read as gzip ({error})") from None
        return
    with path.open("rb") as file:
        file.seek(unit.begin)
        position = unit.begin
        for line, num_bytes in _bounded_lines(file):
            if position >= unit.end:
                return
            yield line.removeprefix(_MARK_OF_UTF_8) if position == 0 else line
            position += num_bytes


def _bounded_lines(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield lines and how long they are; of one that is too long no more than shows it."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        is_whole = len(line) <= MAX_LINE_BYTES or line.endswith(b"\n")
        yield line, len(line) + (0 if is_whole else _skip_line(file))


def _skip_line(file: IO[bytes]) -> int:
    """Read on to the next line, and return over how many bytes."""
    num_bytes = 0
    while piece := file.readline(1 << 20):
        num_bytes += len(piece)
        if piece.endswith(b"\n"):
            break
    return num_bytes


def _count_lines(path: str, num_bytes: int) -> int:
    count = 0
    with open(path, "rb") as file:
        while num_bytes > 0:
            piece = file.read(min(num_bytes, 1 << 20))
            count += piece.count(b"\n")
            num_bytes -= len(piece)
    return count


def _parse(line: bytes, text_field: str, licence_field: str) -> Document | str:
    """Return the document of a line, or why it has none."""
    row = _parse_row(line)
    if isinstance(row, str):
        return row
    if text_field not in row:
        return field_problem(list(row), text_field)
    text = row[text_field]
    return text_problem(text, text_field) or Document(text, licence_of(row.get(licence_field)))


def _parse_row(line: bytes) -> dict[str, Any] | str:
    """Return the object of a line, or why it has none."""
    if len(line) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES:,} bytes"
    try:
        row = json.loads(line.rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        return f"broken JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
    except RecursionError:
        return TOO_DEEP
    except ValueError as error:  # a number too long
        return f"broken JSON ({error})"
    if not isinstance(row, dict):
        return f"not an object, but {type(row).__name__}"
    return row


def _read_texts(unit: Unit) -> Iterator[Document | BadLine]:
    for file in unit.files:
        if problem := size_problem(Path(file).stat().st_size):
            yield BadLine(file, 1, f"{problem}; the file is left out", "")
            continue
        content = Path(file).read_bytes()
        try:
            yield Document(content.decode(), None)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            excerpt = content[:800].decode(errors="replace")[:200]
            yield BadLine(file, line, f"not UTF-8 ({error.reason}); the file is left out", excerpt)
