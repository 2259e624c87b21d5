"""Code: the sources of the standard library, and of other folders where they are asked for."""

import sysconfig
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data"}
MAX_CHARACTERS = 120_000
MAX_LINE = 400


@cache
def source_files() -> tuple[Path, ...]:
    """Return the standard library's readable sources, sorted by name, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return tuple(path for path, _ in readable_texts(root, {".py"}))


def readable_texts(root: Path, suffixes: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Yield files below a folder with their texts, sorted by name, tests left out."""
    for path in sorted(path for path in root.rglob("*") if path.suffix in suffixes):
        parts = path.relative_to(root).parts
        if LEFT_OUT.isdisjoint(parts) and not any("config-" in part for part in parts):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            longest = max(map(len, text.splitlines()), default=0)
            if 200 <= len(text) <= MAX_CHARACTERS and longest <= MAX_LINE:  # else a table of data
                yield path, text


def documents() -> Iterator[str]:
    """Yield one document a source file, in a fixed order."""
    for path in source_files():
        yield path.read_text(encoding="utf-8").strip()
