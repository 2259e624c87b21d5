"""Code: the sources of the standard library."""

import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data"}
MAX_CHARACTERS = 120_000
MAX_LINE = 400


@cache
def source_files() -> tuple[Path, ...]:
    """Return the standard library's readable sources, sorted by name, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if LEFT_OUT.isdisjoint(parts) and not any("config-" in part for part in parts):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            longest = max(map(len, text.splitlines()), default=0)
            if 200 <= len(text) <= MAX_CHARACTERS and longest <= MAX_LINE:  # else a table of data
                found.append(path)
    return tuple(found)


def documents() -> Iterator[str]:
    """Yield one document a source file, in a fixed order."""
    for path in source_files():
        yield path.read_text(encoding="utf-8").strip()
