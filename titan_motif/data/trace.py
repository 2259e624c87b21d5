"""`titan-motif data trace`: what the sequences of a step were made of, in the global order."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from rich.console import Console
from rich.table import Table
from torchtitan.components.loss import IGNORE_INDEX

from titan_motif.components.curriculum.loader import CurriculumLoader
from titan_motif.components.curriculum.micro_batches import SequenceReader
from titan_motif.config import JobConfig
from titan_motif.config_loading import load_config
from titan_motif.curriculum import build_loader


@dataclass
class Options:
    """Tell which documents each sequence of some steps holds, as the run's loader reads them.

    Example: titan-motif data trace --config train_configs/debug.toml --step 120 --count 2
    """

    config: Path
    """The job's TOML file."""
    step: int
    """First step, as the console counts them: from 1."""
    count: int = 1
    """Steps."""
    ranks: int = 1
    """Data-parallel ranks that read them; what comes out is the same for any number."""
    workers: int = 0
    """Loader workers of each rank; the same."""
    override: tuple[str, ...] = ()
    """Settings that differ from the file's: section.field=value."""
    json: Path | None = None
    """Write everything to this file, the same bytes for any ranks and workers."""


def main(options: Options) -> None:
    """Print which documents a step of a job reads."""
    for name in ("step", "count", "ranks"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; at least 1 is needed")
    if options.workers < 0:
        raise ValueError(f"--workers is {options.workers}; at least 0 is needed")
    config = load_job(options.config, options.override, None)
    replicas = max(config.parallelism.tensor_parallel_degree, 1)  # which read the same
    config = load_job(options.config, options.override, options.ranks * replicas)
    steps = config.lr_scheduler.plan.num_steps
    if options.step + options.count - 1 > steps:
        raise ValueError(
            f"--step is {options.step} and --count {options.count}; the run has {steps} steps"
        )
    loaders = [
        build_loader(config, rank, options.ranks, workers={"num_workers": options.workers})
        for rank in range(options.ranks)
    ]
    found = list(trace(loaders, options.step - 1, options.count))
    _print_table(found)
    if options.json is not None:
        content = {"seed": config.debug.seed or 0, "sequences": found}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def load_job(path: Path, overrides: tuple[str, ...], ranks: int | None) -> JobConfig:
    """Return a job as a run of so many processes has it; ConfigError as the run gives it."""
    arguments = [f"--{override}" for override in overrides]
    return load_config(["--job.config_file", str(path), *arguments], ranks)


def trace(
    loaders: list[CurriculumLoader], first_step: int, num_steps: int
) -> Iterator[dict[str, Any]]:
    """Yield a description of each sequence that the ranks' loaders read in some steps."""
    plan, order = loaders[0].plan, loaders[0].order
    reader = SequenceReader(order, loaders[0].streams)
    for loader in loaders:
        loader.next_step = first_step
    batches = [iter(loader) for loader in loaders]
    for index in range(first_step, first_step + num_steps):
        step = plan.step(index)
        number = step.first_sequence
        for _ in range(loaders[0].share.micro_batches(step)):
            for batch in batches:
                inputs, labels = next(batch)
                for row, label in zip(inputs["input"], labels, strict=True):
                    if (label == IGNORE_INDEX).all():  # filling
                        continue
                    where = reader.find(number)
                    stream = loaders[0].streams[where.source]
                    pieces = stream.documents(where.cursor, where.seq_len)
                    yield {
                        "sequence": number,
                        "step": index + 1,
                        "source": stream.name,
                        "group": order.groups[where.source],
                        "seq_len": where.seq_len,
                        "position": where.cursor,
                        "documents": [piece._asdict() for piece in pieces],
                        "sha256": hashlib.sha256(row.numpy().tobytes()).hexdigest(),
                    }
                    number += 1


def _print_table(found: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for heading in (
        "step",
        "sequence",
        "source",
        "epoch",
        "documents (first token, tokens)",
        "hash",
    ):
        table.add_column(heading)
    for entry in found:
        pieces = entry["documents"]
        told = ", ".join(
            f"{'-' if p['document'] is None else p['document']} ({p['begin']}, {p['num_tokens']})"
            for p in pieces[:4]
        )
        more = f" and {len(pieces) - 4} more" if len(pieces) > 4 else ""
        table.add_row(
            str(entry["step"]),
            str(entry["sequence"]),
            entry["source"],
            str(pieces[0]["epoch"]),
            told + more,
            entry["sha256"][:12],
        )
    Console(width=140).print(table)
