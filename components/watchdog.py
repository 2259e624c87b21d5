"""Ends a process that stands still, and says which rank of the job holds up the others.

A thread of each rank looks at what its rank does and since when, and tells the others through the
job's store. A rank that makes no progress for too long usually has no fault of its own: it waits in
a collective for one that reads, saves, or is gone. All enter phases in the same order, so the one
that has entered the fewest is the one that is waited for.
"""

import contextlib
import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed import Store

EXIT_CODE = 1
LEFT = "left"
"""Phase of a rank that is done."""
GRACE_SECONDS = 25.0
"""After which a process whose threads cannot run any more (one holds the interpreter) is ended."""


@dataclass(frozen=True)
class Beat:
    """What a rank does."""

    count: int
    """Phases that it has entered."""
    phase: str
    since: str
    """Time of day when it entered this one."""
    tick: int = 0
    """Grows as long as the rank's process runs."""


class _Phase(NamedTuple):
    beat: Beat
    begin: float
    """Of the monotonic clock."""
    limit: float
    """Seconds that it may take."""


class Watchdog:
    """Watches over one rank; `enter` is called by its main thread alone.

    Args:
        folder:        where the stacks of all threads are written, `rank_N.txt`
        stall_seconds: what a phase may take that says nothing else
        tell:          is given the one sentence before the process ends
        store:         of the job, for the watching thread alone, since a call blocks the others of
                       a client; None watches one rank
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        folder: Path,
        stall_seconds: float,
        tell: Callable[[str, Sequence[int]], None],
        store: Store | None = None,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self.rank, self.world_size, self.folder = rank, world_size, folder
        self.stall_seconds, self.tell, self.store, self.end = stall_seconds, tell, store, end
        self.period = min(max(stall_seconds / 10, 0.05), 2.0)
        self._phase = _Phase(Beat(0, "starting", _now()), time.monotonic(), stall_seconds)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._file: Any = None

    def start(self) -> None:
        """Begin to watch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / f"rank_{self.rank}.txt").open("a")
        self.enter(self._phase.beat.phase, self._phase.limit)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; a file without stacks goes."""
        if self._stopped.is_set() or self._file is None:
            return
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._publish(Beat(self._phase.beat.count, LEFT, _now()), tick=0)
        self._file.close()
        with contextlib.suppress(OSError):
            file = self.folder / f"rank_{self.rank}.txt"
            if not file.stat().st_size:
                file.unlink()
            self.folder.rmdir()

    def enter(self, phase: str, seconds: float | None = None) -> None:
        """Say what the rank does from now on: progress.

        Args: seconds: what it may take; None is `stall_seconds`
        """
        limit = self.stall_seconds if seconds is None else seconds
        beat = Beat(self._phase.beat.count + 1, phase, _now())
        self._phase = _Phase(beat, time.monotonic(), limit)
        if self._file is not None and not self._stopped.is_set():
            faulthandler.dump_traceback_later(limit + GRACE_SECONDS, exit=True, file=self._file)

    # ---- the watching thread

    def _watch(self) -> None:
        tick = 0
        while not self._stopped.wait(self.period):
            tick += 1
            phase = self._phase
            self._publish(phase.beat, tick)
            if time.monotonic() - phase.begin > phase.limit:
                self._end_process(phase, tick)

    def _publish(self, beat: Beat, tick: int) -> None:
        if self.store is None:
            return
        content = asdict(beat) | {"tick": tick}
        try:
            self.store.set(_key(self.rank), json.dumps(content))
        except RuntimeError:  # the job ends, or its first machine is gone
            self.store = None

    def _end_process(self, phase: _Phase, tick: int) -> None:
        """End it, unless it goes on while the others are looked at."""
        sentence, silent = self._sentence(phase, tick)
        if phase is not self._phase or self._stopped.is_set():
            return
        faulthandler.dump_traceback(self._file, all_threads=True)
        self._file.flush()
        self.tell(f"{sentence}; stacks of all threads: {self.folder}", silent)
        self.end(EXIT_CODE)

    def _sentence(self, phase: _Phase, tick: int) -> tuple[str, list[int]]:
        """Return what to say, and the ranks that say nothing themselves."""
        own = phase.beat
        beats, frozen = self._look_around(own, tick)
        seconds = f"{phase.limit:g} s"
        if frozen:
            names = _ranks(frozen)
            what = ", ".join(dict.fromkeys(beats[r].phase for r in frozen if r in beats))
            last = f"; the last that was told: {what}" if what else ""
            return f"nothing is heard of {names}: stopped, or its machine is gone{last}", frozen
        fewest = min(beat.count for beat in beats.values())
        last_ranks = [rank for rank, beat in beats.items() if beat.count == fewest]
        beat = beats[last_ranks[0]]
        told = f"{_ranks(last_ranks)} made no progress for {seconds}, since {beat.since}"
        told += f": {beat.phase}"
        if len(last_ranks) < len(beats):
            told += "; the others wait for it"
        return told, []

    def _look_around(self, own: Beat, tick: int) -> tuple[dict[int, Beat], list[int]]:
        """Return what the ranks do, and those whose processes run no more."""
        if self.store is None:
            return {self.rank: own}, []
        first = self._read_all()
        deadline = time.monotonic() + 5 * self.period
        while time.monotonic() < deadline:  # as the others do, who look at this one
            time.sleep(self.period)
            tick += 1
            self._publish(own, tick)
        then = self._read_all() if self.store is not None else first
        frozen = [
            rank
            for rank in range(self.world_size)
            if rank != self.rank
            and (rank not in then or (rank in first and then[rank].tick == first[rank].tick))
        ]
        left = {rank for rank, beat in then.items() if beat.phase == LEFT}
        beats = {rank: beat for rank, beat in first.items() if rank not in left}
        return beats | {self.rank: own}, [rank for rank in frozen if rank not in left]

    def _read_all(self) -> dict[int, Beat]:
        found = {}
        assert self.store is not None
        try:
            for rank in range(self.world_size):
                if self.store.check([_key(rank)]):
                    found[rank] = Beat(**json.loads(self.store.get(_key(rank))))
        except RuntimeError:
            self.store = None
        return found


def _key(rank: int) -> str:
    return f"titan_motif/watchdog/{rank}"


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:4]))
    return f"ranks {shown}{f' and {len(ranks) - 4} more' if len(ranks) > 4 else ''}"


def _now() -> str:
    return time.strftime("%H:%M:%S")
