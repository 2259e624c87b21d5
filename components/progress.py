"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 10.0
"""Between the lines where there is no terminal."""


@contextmanager
def byte_progress(
    label: str, total_bytes: int, done_bytes: int = 0
) -> Iterator[Callable[[int], None]]:
    """Give a function that is told of every so many bytes done; `done_bytes` were done before.

    Rate and time left go to the standard error. The rate is that since the beginning: work that
    ends in large pieces, several at once, has none from one piece to the next.
    """
    progress = _Progress(total_bytes, done_bytes)
    if sys.stderr.isatty():
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}")
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total_bytes, completed=done_bytes, told="")

            def advance(num_bytes: int) -> None:
                progress.add(num_bytes)
                bar.update(task, completed=progress.done, told=str(progress))

            yield advance
        return
    told = time.monotonic()

    def tell(num_bytes: int) -> None:
        nonlocal told
        progress.add(num_bytes)
        if progress.now - told >= LINE_SECONDS:
            told = progress.now
            print(f"{label}: {progress}", file=sys.stderr, flush=True)

    yield tell


class _Progress:
    def __init__(self, total_bytes: int, done_bytes: int) -> None:
        self.total, self.done, self.done_before = total_bytes, done_bytes, done_bytes
        self.begin = self.now = time.monotonic()

    def add(self, num_bytes: int) -> None:
        self.done += num_bytes
        self.now = time.monotonic()

    def __str__(self) -> str:
        rate = (self.done - self.done_before) / max(self.now - self.begin, 1e-9)
        left = max(self.total - self.done, 0) / max(rate, 1)
        return (
            f"{self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, "
            f"{left:,.0f} s left"
        )
