"""English prose: the language reference, docstrings of the standard library, licence texts."""

import ast
import inspect
import site  # noqa: F401  (its import defines `builtins.license`)
from collections.abc import Iterator
from pydoc_data.topics import topics

from titan_motif.corpus.code import source_files

MIN_CHARACTERS = 200


def documents() -> Iterator[str]:
    """Yield texts in a fixed order, no two alike; a module's docstrings form one document."""
    seen = set()
    for text in _texts():
        text = text.strip()
        if len(text) >= MIN_CHARACTERS and text not in seen:
            seen.add(text)
            yield text


def _texts() -> Iterator[str]:
    for name in sorted(topics):
        yield topics[name]
    yield from _licences()
    for path in source_files():
        yield _docstrings(path.read_text(encoding="utf-8"))


def _licences() -> Iterator[str]:
    import builtins

    for name in ("license", "copyright", "credits"):
        printer = getattr(builtins, name, None)
        if printer is not None:
            printer._Printer__setup()
            yield "\n".join(printer._Printer__lines)


def _docstrings(source: str) -> str:
    """Join the docstrings of a module, its classes and functions; nothing is imported."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) > 60:
                found.append(inspect.cleandoc(text))
    return "\n\n".join(dict.fromkeys(found))
