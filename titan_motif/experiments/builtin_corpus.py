"""The built-in corpus as experiments read it: prepared if it is not there, and told by hashes."""

import hashlib
from pathlib import Path
from typing import Any

from titan_motif.corpus.manifest import load_manifest
from titan_motif.corpus.prepare import GROUPS, prepare


def prepare_builtin(folder: Path, vocab_size: int) -> dict[str, Any]:
    """Return the manifest of the corpus in a folder, which is prepared unless it is there.

    Raises: ValueError if the folder holds something else
    """
    prepare(folder, vocab_size)
    return load_manifest(folder)


def files_sha256(manifest: dict[str, Any]) -> str:
    """Return a hash of all prepared files' hashes: tokens and tokenizer."""
    hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()


def told_corpus(manifest: dict[str, Any], config_sha256: str) -> str:
    """Return a sentence on the corpus, for a page."""
    splits = manifest["splits"]
    told = [
        f"{group} {splits['train'][group]['tokens']:,} tokens to learn from and "
        f"{splits['validation'][group]['tokens']:,} to validate"
        for group in GROUPS
    ]
    return (
        f"Data: the built-in corpus, {manifest['settings']['vocab_size']:,} entries: "
        f"{'; '.join(told)}. Hashes: prepared files `{files_sha256(manifest)[:16]}`, configuration "
        f"`{config_sha256[:16]}`."
    )
