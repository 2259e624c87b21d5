"""The manifest of a prepared corpus: its settings, its counts, and a hash of every file."""

from pathlib import Path
from typing import Any

from titan_motif.components.foreign_files import inside, read_json

MANIFEST = "manifest.json"
FORMAT = 2


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a corpus whose files are there at their recorded sizes.

    Raises: ValueError, one line, naming the file that is missing, damaged or of another size
    """
    folder = Path(folder)
    path = folder / MANIFEST
    again = f"prepare it with: python -m titan_motif.corpus --output {folder}"
    try:
        manifest = read_json(inside(folder, MANIFEST))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {again}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {again}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not a manifest of format {FORMAT}; {again}")
    for name, recorded in manifest["files"].items():
        try:
            file = inside(folder, name)
        except ValueError as error:
            raise ValueError(f"{path}: lists what is not the corpus's: {error}") from None
        size = file.stat().st_size if file.is_file() else None
        if size != recorded["bytes"]:
            found = "missing" if size is None else f"{size} bytes long"
            raise ValueError(f"{file}: {found}; the manifest says {recorded['bytes']}; {again}")
    return manifest


def has_manifest(folder: str | Path) -> bool:
    """Return whether a folder holds a manifest of ours, of any format, whole or not its files."""
    try:
        manifest = read_json(Path(folder) / MANIFEST)
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"format", "settings", "files"} <= manifest.keys()
