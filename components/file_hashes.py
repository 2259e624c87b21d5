"""Hashes of files, and of records in JSON that carry a hash of themselves."""

import hashlib
import json
from pathlib import Path
from typing import Any

from titan_motif.components.whole_files import replace_text


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_sha256(record: dict[str, Any]) -> str:
    """Return the hash of all but a record's "sha256", whatever the order of keys and the spaces."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write a record with the hash of itself, at once or not at all, and return it."""
    record = {**record, "sha256": own_sha256(record)}
    replace_text(path, json.dumps(record, indent=2) + "\n", is_synced=True)
    return record
