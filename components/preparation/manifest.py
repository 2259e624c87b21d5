"""The manifest of a prepared source: how it was made, what it holds, and a hash of every file.

SOURCE/manifest.json                     what this module writes and checks
SOURCE/train/tokens.npy                  1-D, uint16 or uint32: each document and its end token
SOURCE/train/document_offsets.npy        int64: where each document begins, and the last one's end
SOURCE/validation/                       the same for the documents held out
SOURCE/bad_lines.jsonl                   what was put aside, if anything was
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titan_motif.components.file_hashes import file_sha256, own_sha256, write_record
from titan_motif.components.foreign_files import MAX_RECORD_BYTES, inside, read_json
from titan_motif.components.preparation.tokenizer import end_of_text

MANIFEST = "manifest.json"
FORMAT = 2
_KEYS = {"files", "splits", "tokenizer", "inputs", "sha256"}


def write_manifest(folder: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write a folder's manifest, its files described and itself hashed, and return it.

    To be called last: a folder with a manifest is complete.
    """
    folder = Path(folder)
    manifest = {"format": FORMAT, **content, "files": describe_files(folder)}
    return write_record(folder / MANIFEST, manifest)


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a source whose files are there at their recorded sizes.

    Raises: ValueError, one line, naming the file that is missing, damaged or of another size
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest = read_json(inside(folder, MANIFEST), MAX_RECORD_BYTES)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; `titan-motif data prepare` writes it with a source"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}); prepare it again") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT or not manifest.keys() >= _KEYS:
        told = "incomplete" if found == FORMAT else f"of format {found}"
        raise ValueError(f"{path}: {told}; a manifest of a source, format {FORMAT}, is needed")
    if manifest["sha256"] != own_sha256(manifest):
        raise ValueError(
            f"{path}: edited since preparation: its content has another hash than it records; "
            "prepare it again"
        )
    _check_form(folder, manifest)
    for name, recorded in manifest["files"].items():
        file, needed = folder / name, recorded["bytes"]
        size = file.stat().st_size if file.is_file() else None
        if size != needed:
            told = f"{size} bytes" if size is not None else "missing"
            change = "" if size is None else ", shortened" if size < needed else ", lengthened"
            raise ValueError(
                f"{file}: {told}{change} since preparation; the manifest says {needed} bytes"
            )
    return manifest


def _check_form(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError, one line, unless a manifest tells of files within its folder.

    Its hash does not show that: whoever makes up a manifest makes up its hash.
    """
    path = folder / MANIFEST
    for key in ("files", "splits", "tokenizer"):
        if not isinstance(manifest[key], dict):
            raise ValueError(f"{path}: {key} is {type(manifest[key]).__name__}; a table is needed")
    for name, recorded in manifest["files"].items():
        try:
            inside(folder, name)
        except ValueError as error:
            raise ValueError(f"{path}: lists what is not the source's: {error}") from None
        is_whole = isinstance(recorded, dict) and type(recorded.get("bytes")) is int
        if not (is_whole and isinstance(recorded.get("sha256"), str)):
            raise ValueError(f"{path}: what it says of {name!r} is no size and hash")


def verify_files(folder: str | Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Read every file whole and yield a line for each whose content is not the recorded one."""
    folder = Path(folder)
    for name, recorded in manifest["files"].items():
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            yield f"{folder / name}: cannot be read ({error.strerror})"
            continue
        if found != recorded["sha256"]:
            needed = recorded["sha256"]
            yield (
                f"{folder / name}: changed since preparation: SHA-256 {found[:12]}..., the "
                f"manifest says {needed[:12]}..."
            )


def tokenizer_sha256(folder: str | Path) -> str:
    """Return the SHA-256 of a folder's tokenizer.json; ValueError if it has none."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a tokenizer folder holds tokenizer.json")
    try:
        return file_sha256(inside(Path(folder), "tokenizer.json"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_tokenizer(manifest: dict[str, Any], tokenizer_folder: str | Path) -> None:
    """Raise ValueError unless a source was prepared with exactly this tokenizer."""
    found, needed = tokenizer_sha256(tokenizer_folder), manifest["tokenizer"]["sha256"]
    if found != needed:
        raise ValueError(
            f"{Path(tokenizer_folder) / 'tokenizer.json'}: changed since preparation, or another "
            f"one: SHA-256 {found[:12]}...; the source was prepared with {needed[:12]}..."
        )
    found, needed = end_of_text(tokenizer_folder), manifest["tokenizer"]["end_of_text"]
    if found != needed:
        raise ValueError(
            f"{Path(tokenizer_folder) / 'tokenizer_config.json'}: documents end with {found!r}; in "
            f"the source they end with {needed!r}"
        )


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file under a folder but its manifest, by relative name."""
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
