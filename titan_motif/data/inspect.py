"""`titan-motif data inspect`: what a prepared source holds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from titan_motif.components.curriculum.sources import TokenFile
from titan_motif.components.foreign_files import printable
from titan_motif.components.preparation.assemble import SPLITS
from titan_motif.components.preparation.manifest import (
    MANIFEST,
    check_tokenizer,
    load_manifest,
    verify_files,
)
from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.data.inspect_chat import inspect_chat

SAMPLE_TOKENS = 200
"""What is shown of a document."""
LENGTHS = ("min", "median", "mean", "p95", "max")


@dataclass(frozen=True)
class Options:
    """Tell the counts, lengths and licences of a source, and show some of its documents.

    Example: titan-motif data inspect data/web --tokenizer data/tokenizer --samples 3
    """

    path: Annotated[Path, tyro.conf.Positional]
    """The source's folder."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that it was prepared with; without it samples are token ids."""
    samples: int = 3
    """Documents of the training split to show."""
    chat: bool = False
    """Of packed conversations: show samples, what is learnt of them in colour."""
    verify: bool = False
    """Read every file whole and compare its hash with the manifest's."""
    json: Path | None = None
    """Write the figures to this file."""


def main(options: Options) -> None:
    """Print what a prepared source, or packed conversations, hold."""
    if options.samples < 0:
        raise ValueError(f"--samples is {options.samples}; at least 0 is needed")
    if options.chat:
        content = inspect_chat(options.path, options.tokenizer, options.samples)
        _finish(options, load_manifest(options.path), content)
        return
    manifest = _manifest(options)
    if "chat" in manifest:
        raise ValueError(f"{options.path}: holds packed conversations; --chat shows them")
    found = {
        name: _counts(options.path / name, manifest)
        for name in SPLITS
        if manifest or name == "train" or (options.path / name).is_dir()
    }
    _print_counts(found)
    _print_manifest(manifest)
    samples = _samples(options)
    for sample in samples:
        print(f"\n--- document {sample['document']}, {sample['tokens']:,} tokens")
        print(
            printable(sample["text"], "\n\t")
            if "text" in sample
            else " ".join(map(str, sample["ids"]))
        )
    kept = ("licences", "duplicates", "deduplicated", "empty", "bad_lines", "tokenizer")
    content = {"splits": found, "samples": samples}
    content |= {name: manifest[name] for name in kept if name in manifest}
    _finish(options, manifest, content)


def _finish(options: Options, manifest: dict[str, Any], content: dict[str, Any]) -> None:
    """Write the JSON file, and verify, where that is asked for."""
    if options.json is not None:
        content = {"path": str(options.path), **content}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.verify:
        _verify(options.path, manifest)


def _manifest(options: Options) -> dict[str, Any]:
    """Return a source's manifest; an empty one for tokens that no preparation made.

    Raises: ValueError if the folder is no source, or of another tokenizer
    """
    path = options.path
    if not (path / "train" / "tokens.npy").is_file():
        within = sorted(file.parts[-3] for file in path.glob("*/train/tokens.npy"))
        if within:
            told = f"{path}: a folder of the sources {', '.join(within)}; name one of them"
            raise ValueError(f"{told}, such as {path / within[0]}")
    elif not (path / MANIFEST).is_file():
        if options.verify:
            raise ValueError(f"{path / MANIFEST}: no such file; without it nothing can be verified")
        return {}
    manifest = load_manifest(path)
    if options.tokenizer is not None:
        check_tokenizer(manifest, options.tokenizer)
    return manifest


def _counts(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return documents, tokens and bytes of a split, and the lengths of its documents."""
    if manifest and not manifest["splits"][folder.name]["documents"]:  # nothing held out
        return manifest["splits"][folder.name] | {"document_tokens": None}
    file = TokenFile(folder)
    counted: dict[str, Any] = {"documents": None, "tokens": len(file), "bytes": None}
    if file.offsets is not None:
        counted["documents"] = len(file.offsets) - 1
    if manifest:
        counted = manifest["splits"][folder.name]
    return counted | {"document_tokens": _lengths(file)}


def _lengths(file: TokenFile) -> dict[str, float] | None:
    """Return how many tokens the documents of a split have; None where they are not known."""
    if file.offsets is None:
        return None
    lengths = np.diff(file.offsets)
    if lengths.min() < 1:
        number = int(lengths.argmin())
        raise ValueError(
            f"{file.path.with_name('document_offsets.npy')}: damaged: document {number} has "
            f"{lengths[number]} tokens"
        )
    figures = lengths.min(), np.median(lengths), lengths.mean(), np.percentile(lengths, 95)
    return dict(zip(LENGTHS, map(float, (*figures, lengths.max())), strict=True))


def _samples(options: Options) -> list[dict[str, Any]]:
    """Return the beginnings of the first documents: their order is drawn already."""
    file = TokenFile(options.path / "train")
    offsets = file.offsets if file.offsets is not None else np.array([0, len(file)])
    loaded = options.tokenizer and load_tokenizer(options.tokenizer)
    samples = []
    for document in range(min(options.samples, len(offsets) - 1)):
        begin, end = offsets[document : document + 2].tolist()
        shown = file.tokens[begin : min(end, begin + SAMPLE_TOKENS)].tolist()
        sample: dict[str, Any] = {"document": document, "tokens": end - begin}
        if loaded:
            sample["text"] = loaded.tokenizer.decode(shown, skip_special_tokens=False)
        else:
            sample["ids"] = shown
        samples.append(sample)
    return samples


def _print_counts(found: dict[str, Any]) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("split")
    for heading in ("documents", "tokens", "MB", *(f"{name} tokens" for name in LENGTHS)):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, split in found.items():
        lengths = split["document_tokens"] or {}
        table.add_row(
            name,
            "-" if split["documents"] is None else f"{split['documents']:,}",
            f"{split['tokens']:,}",
            "-" if split["bytes"] is None else f"{split['bytes'] / 1e6:,.2f}",
            *(f"{lengths[name]:,.0f}" if lengths else "-" for name in LENGTHS),
        )
    Console(width=120).print(table)


def _print_manifest(manifest: dict[str, Any]) -> None:
    if not manifest:
        print("no manifest: of tokenizer, licences and duplicates nothing is known")
        return
    fate = "left out" if manifest["deduplicated"] else "kept"
    print(
        f"duplicates {manifest['duplicates']:,} ({fate}), empty {manifest['empty']:,}, "
        f"bad lines {manifest['bad_lines']:,}"
    )
    tokenizer = manifest["tokenizer"]
    print(
        f"tokenizer of {tokenizer['vocab_size']:,} entries, end of text "
        f"{tokenizer['end_of_text']} ({tokenizer['end_id']}), SHA-256 {tokenizer['sha256'][:12]}..."
    )
    for licence, count in manifest["licences"].items():
        print(f"licence {printable(str(licence))}: {count:,} documents")


def _verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError if the content of a file is not what was prepared."""
    findings = list(verify_files(folder, manifest))
    for finding in findings[1:]:
        print(finding)
    if findings:
        more = f" (and {len(findings) - 1} more)" if findings[1:] else ""
        raise ValueError(f"{findings[0]}{more}")
    print(f"verified: {len(manifest['files'])} files have the hashes of the manifest")
