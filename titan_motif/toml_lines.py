"""In which line of a TOML file a key stands: readers of TOML tell the values alone."""

from collections.abc import Iterator

import tomli

_QUOTES = ('"""', "'''", '"', "'")


def key_lines(text: str) -> dict[str, int]:
    """Return the line (from 1) of every key and table of a text that is valid TOML.

    A key is named with its table's, as in `optimizer.muon.momentum`; of a list of tables the number
    (from 1) stands between, as in `curriculum.sources.2.path`. Keys of a table that is written
    within one line are not told apart from it.
    """
    found: dict[str, int] = {}
    num_tables: dict[str, int] = {}
    table: list[str] = []
    for position, _, line in _statements(text):
        if text.startswith("[[", position):
            names, _ = _key(text, position + 2)
            table = _numbered(names, num_tables)
            name = ".".join(table)
            num_tables[name] = num_tables.get(name, 0) + 1
            table = [*table, str(num_tables[name])]
            found.setdefault(name, line)
            found[".".join(table)] = line
        elif text[position] == "[":
            names, _ = _key(text, position + 1)
            table = _numbered(names, num_tables, is_whole=True)
            found[".".join(table)] = line
        else:
            names, _ = _key(text, position)
            found[".".join([*table, *names])] = line
    return found


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each table's head, and each key with its value, after the line where it begins."""
    for position, end, line in _statements(text):
        yield line, text[position:end]


def _numbered(names: list[str], num_tables: dict[str, int], is_whole: bool = False) -> list[str]:
    """Return a table's names, with the number of the last element after each list of tables."""
    numbered: list[str] = []
    for index, name in enumerate(names):
        numbered.append(name)
        here = ".".join(numbered)
        if here in num_tables and (is_whole or index < len(names) - 1):
            numbered.append(str(num_tables[here]))
    return numbered


def _statements(text: str) -> Iterator[tuple[int, int, int]]:
    """Yield where a table's head, or a key with its value begins and ends, and its first line."""
    position, line = 0, 1
    while position < len(text):
        char = text[position]
        if char == "#":
            position = _end_of_line(text, position)
        elif char == "\n":
            position, line = position + 1, line + 1
        elif char.isspace():
            position += 1
        else:
            end = _end_of_statement(text, position)
            yield position, end, line
            line += text.count("\n", position, end)
            position = end


def _key(text: str, position: int) -> tuple[list[str], int]:
    """Return the names of a dotted key, and where it ends."""
    names: list[str] = []
    while True:
        while text[position] in " \t":
            position += 1
        if text[position] in "\"'":
            end = _end_of_string(text, position)
            names.append(tomli.loads(f"name = {text[position:end]}")["name"])
        else:
            end = position
            while end < len(text) and text[end] not in " \t.=]\r\n":
                end += 1
            names.append(text[position:end])
        while end < len(text) and text[end] in " \t":
            end += 1
        if end >= len(text) or text[end] != ".":
            return names, end
        position = end + 1


def _end_of_statement(text: str, position: int) -> int:
    """Return where a head, or a key and its value end: before the end of a line."""
    depth = 0
    while position < len(text):
        char = text[position]
        if char == "#":
            position = _end_of_line(text, position)
        elif char in "\"'":
            position = _end_of_string(text, position)
        elif char == "\n" and depth == 0:
            return position
        else:
            depth += (char in "[{") - (char in "]}")
            position += 1
    return position


def _end_of_line(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end == -1 else end


def _end_of_string(text: str, position: int) -> int:
    """Return the position after a string that begins here."""
    quote = next(q for q in _QUOTES if text.startswith(q, position))
    position += len(quote)
    while position < len(text) and not text.startswith(quote, position):
        has_escape = text[position] == "\\" and quote[0] == '"'
        position += 2 if has_escape else 1
    position = min(position + len(quote), len(text))
    while len(quote) == 3 and text.startswith(quote[0], position):  # a quote that ends the text
        position += 1
    return position
