"""What passes between the readers of documents and those who use them: plain data, picklable."""

from textwrap import shorten
from typing import NamedTuple

from titan_motif.components.foreign_files import MAX_JSON_BYTES, MAX_NESTING, is_too_deep, printable

UNIT_BYTES = 8_000_000
"""About how much text a unit holds: seconds of work, so that a kill loses little."""

MAX_DOCUMENT_BYTES = MAX_JSON_BYTES
"""Of a document's text. A tokenizer takes 140 bytes of memory for each of its bytes, 2.3 GB in all;
nor can it be cut so that any tokenizer gives the same tokens."""

TOO_DEEP = f"nested more than {MAX_NESTING} deep"


class Unit(NamedTuple):
    """A part of the inputs that is read, tokenised and kept as one."""

    format: str
    files: tuple[str, ...]
    """One file; several of plain text."""
    begin: int
    """In the file: a byte, a row group, a record batch or a row, as the format has it."""
    end: int
    num_bytes: int
    """About how much it holds, for the progress."""
    rows_before: int = 0
    """Rows of the file before `begin`, where the format counts rows."""


class Document(NamedTuple):
    """A text, and the licence that its row names."""

    text: str
    licence: str | None


class BadLine(NamedTuple):
    """A line that is no document."""

    file: str
    line: int
    """From 1; in a table, the row."""
    reason: str
    excerpt: str
    """Its first 200 characters."""

    def __str__(self) -> str:
        return printable(f"{self.file}, line {self.line}: {self.reason}")


def field_problem(fields: list[str], name: str) -> str:
    """Return why a row has no document, the fields that it has named."""
    shown = shorten(", ".join(fields), 200, placeholder=" ...") or "none"
    return f"no field {name!r}; its fields are {printable(shown)}"


def nesting_problem(value: object) -> str | None:
    """Return what is wrong with how deep a value is nested, None if nothing is."""
    return TOO_DEEP if is_too_deep(value) else None


def text_problem(text: object, name: str) -> str | None:
    """Return what is wrong with the value of a text field, None if nothing is."""
    if not isinstance(text, str):
        found = "null" if text is None else type(text).__name__
        return f"the field {name!r} is {found}; text is needed"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return f"the field {name!r} has half of a surrogate pair, which is no character"
    return size_problem(size)


def size_problem(num_bytes: int) -> str | None:
    """Return what is wrong with how long a document's text is, None if nothing is."""
    if num_bytes <= MAX_DOCUMENT_BYTES:
        return None
    return f"{num_bytes:,} bytes of text; at most {MAX_DOCUMENT_BYTES:,} are a document"


def licence_of(value: object) -> str | None:
    """Return a row's licence as one text: some data sets name several in a list."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    return str(value)
