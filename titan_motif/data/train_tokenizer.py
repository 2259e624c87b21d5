"""`titan-motif data train-tokenizer`: a byte-level BPE with special tokens and a chat template."""

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from titan_motif.components.preparation.inputs import find_inputs
from titan_motif.components.preparation.manifest import tokenizer_sha256
from titan_motif.components.preparation.readers import plan_units, read_unit
from titan_motif.components.preparation.tokenizer import save_tokenizer, train_tokenizer
from titan_motif.components.preparation.units import BadLine, Unit
from titan_motif.components.progress import byte_progress


@dataclass(frozen=True)
class Options:
    """Train a tokenizer in the Hugging Face format, special tokens and chat template with it.

    Example: titan-motif data train-tokenizer --inputs web/ --output data/tokenizer
    """

    inputs: tuple[str, ...]
    """Files, folders (all files of the format below them) or patterns such as 'web/*.jsonl'."""
    output: Path
    """The folder to write; it must not hold anything."""
    vocab_size: int = 219_520
    """Entries, the 256 bytes and the special tokens among them."""
    max_megabytes: float = 2000.0
    """Of text to train on, drawn from all of the inputs; more takes longer and more memory."""
    format: str = "auto"
    """auto (by the suffix), jsonl (gzip too), parquet, arrow, text, or huggingface (on disk)."""
    text_field: str = "text"
    """Field of a row that holds the document."""
    seed: int = 0
    """Of the draw, where the inputs hold more than is asked for."""
    max_bad_lines: int = 100
    """More of them stop the training."""
    json: Path | None = None
    """Write what it was trained on to this file."""


class _Texts:
    """Texts of units up to a number of bytes, and what came beside them."""

    def __init__(self, units: Sequence[Unit], options: Options) -> None:
        self.units, self.options = units, options
        self.num_documents = self.num_bytes = 0
        self.bad_lines: list[BadLine] = []

    def __iter__(self) -> Iterator[str]:
        """Raises: ValueError if too many lines are bad"""
        limit = self.options.max_megabytes * 1e6
        total = int(min(limit, sum(unit.num_bytes for unit in self.units)))
        with byte_progress("reading", total) as advance:
            for unit in self.units:
                for found in read_unit(unit, self.options.text_field, ""):
                    if isinstance(found, BadLine):
                        self._put_aside(found)
                        continue
                    size = len(found.text.encode())
                    advance(size)
                    self.num_bytes += size
                    self.num_documents += 1
                    yield found.text
                    if self.num_bytes >= limit:
                        return

    def _put_aside(self, bad_line: BadLine) -> None:
        self.bad_lines.append(bad_line)
        if len(self.bad_lines) > self.options.max_bad_lines:
            raise ValueError(
                f"more than {self.options.max_bad_lines} bad lines; the first: {self.bad_lines[0]}"
            )


def main(options: Options) -> None:
    """Train a tokenizer on texts, and write it."""
    if not 0 < options.max_megabytes < float("inf"):
        raise ValueError(f"--max-megabytes is {options.max_megabytes}; more than 0 is needed")
    if options.max_bad_lines < 0:
        raise ValueError(f"--max-bad-lines is {options.max_bad_lines}; at least 0 is needed")
    output = options.output.absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: holds something, which is not replaced; name another folder")
    begin = time.perf_counter()
    units = plan_units(find_inputs(options.inputs, options.format), options.text_field, "")
    # Mixed, so that a part of the inputs is like the whole.
    random.Random(options.seed).shuffle(units)
    texts = _Texts(units, options)
    tokenizer = train_tokenizer(texts, options.vocab_size, show_progress=sys.stderr.isatty())
    for bad_line in texts.bad_lines[:5]:
        print(f"left out: {bad_line}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{output.name}.new-", dir=output.parent) as work:
        save_tokenizer(tokenizer, Path(work) / "tokenizer")
        shutil.move(Path(work) / "tokenizer", output)
    seconds = time.perf_counter() - begin
    print(
        f"{output}: {options.vocab_size:,} entries from {texts.num_documents:,} documents, "
        f"{texts.num_bytes / 1e6:,.1f} MB, {len(texts.bad_lines)} bad lines left out, in "
        f"{seconds:.1f} s"
    )
    if options.json is not None:
        content = {
            "output": str(output),
            "sha256": tokenizer_sha256(output),
            "vocab_size": options.vocab_size,
            "documents": texts.num_documents,
            "bytes": texts.num_bytes,
            "bad_lines": [bad_line._asdict() for bad_line in texts.bad_lines],
            "seconds": seconds,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
