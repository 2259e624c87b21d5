"""`titan-motif bench loader`: tokens a second from a prepared source, and the memory it takes."""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import numpy as np

from titan_motif.components.curriculum.loader import CurriculumLoader, DocumentInputs
from titan_motif.components.curriculum.micro_batches import Share
from titan_motif.components.curriculum.schedule import Phase, plan_run
from titan_motif.components.curriculum.sources import TokenFile, TokenStream


@dataclass
class Options:
    """Measure the loader by itself: one rank, sequences as a training run gets them.

    Example: titan-motif bench loader --tokens 100000000 --workers 2
    """

    source: Path | None = None
    """A prepared source's folder; none makes one of random tokens for the time of the run."""
    tokens: int = 50_000_000
    """Tokens of the source that is made."""
    seq_len: int = 4096
    """Tokens of a sequence."""
    rows: int = 4
    """Sequences of a micro-batch."""
    workers: int = 2
    """Worker processes."""
    documents: bool = True
    """Whether document numbers go along, as training.mask_documents asks for."""
    seconds: float = 5.0
    """How long to read."""
    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class Measurement:
    """What the loader did."""

    source_tokens: int
    workers: int
    tokens_per_second: float
    first_batch_seconds: float
    """From nothing to the first micro-batch: workers have to start."""
    anonymous_mb: float
    """Memory of this process and its workers that is no mapped file, at the end."""


def main(options: Options) -> None:
    """Read a source for a while, and print how fast that was."""
    for name in ("tokens", "seq_len", "rows"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; at least 1 is needed")
    if options.workers < 0:
        raise ValueError(f"--workers is {options.workers}; at least 0 is needed")
    if not 0 < options.seconds < float("inf"):
        raise ValueError(f"--seconds is {options.seconds}; more than 0 is needed")
    if options.source is not None:
        found = measure_loader(options.source, options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_random_source(Path(folder), options.tokens)
            found = measure_loader(Path(folder), options)
    print(
        f"{found.source_tokens:,} tokens, {found.workers} workers: "
        f"{found.tokens_per_second / 1e6:.1f} million tokens/s, first micro-batch after "
        f"{found.first_batch_seconds:.2f} s, {found.anonymous_mb:.0f} MB of anonymous memory"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(found), indent=1) + "\n")


def write_random_source(folder: Path, num_tokens: int) -> None:
    """Write random tokens as the training split of a source; about one in 1000 is the separator."""
    (folder / "train").mkdir(parents=True)
    tokens = np.lib.format.open_memmap(
        folder / "train" / "tokens.npy", "w+", dtype=np.uint32, shape=(num_tokens,)
    )
    generator = np.random.default_rng(0)
    for begin in range(0, num_tokens, 1 << 24):
        part = tokens[begin : begin + (1 << 24)]
        part[:] = generator.integers(0, 1000, len(part), dtype=np.uint32)
    tokens.flush()


def measure_loader(folder: Path, options: Options) -> Measurement:
    """Read a source as one rank for some seconds."""
    file = TokenFile(folder / "train", at_least=options.seq_len + 1)
    batch = options.rows * options.seq_len
    # More steps than anyone reads; the plan takes memory for each.
    phase = Phase("all", batch << 22, options.seq_len, batch, batch, {"all": 1.0}, {"all": 1.0})
    loader = CurriculumLoader(
        plan_run([phase]),
        [("all", "all", 1.0)],
        [TokenStream(file, "all", 0, cell_tokens=options.seq_len)],
        seed=0,
        share=Share(rank=0, ranks=1),
        documents=DocumentInputs(0, restart_positions=False) if options.documents else None,
        workers={"num_workers": options.workers},
    )
    begin = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - begin
    for _ in islice(batches, 20):  # what workers have read ahead while they started
        pass
    begin, num_batches = time.perf_counter(), 0
    while time.perf_counter() - begin < options.seconds:
        next(batches)
        num_batches += 1
    seconds = time.perf_counter() - begin
    return Measurement(
        len(file), options.workers, num_batches * batch / seconds, first, anonymous_mb()
    )


def anonymous_mb() -> float:
    """Return the anonymous memory of this process and its children (Linux), in MB."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    total = 0
    for pid in (own, *map(int, children)):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1])
    return total / 1000
