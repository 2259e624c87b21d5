"""Ends a process that stands still, and says which rank of the job holds up the others.

A thread of each rank looks at what its rank does and since when, and tells the others through the
job's store. A rank that makes no progress for too long usually has no fault of its own: it waits in
a collective for one that reads, saves, or is gone. All enter phases in the same order, so the one
that has entered the fewest is the one that is waited for.

The thread also counts, whatever its rank does. A count that stands still is a process that is
stopped, and no phase is so long that it explains it. The first rank looks at all counts, and all
look at the first's: the store is asked a few times a rank, however many there are.
"""

import contextlib
import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed import Store

EXIT_CODE = 1
_MOST_PERIODS = 8
"""From the end of what a phase may take, or a process be stopped, to the sentence: one until a
count is read first, one until it is looked at, and up to six in which the others are."""
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
        stall_seconds: what a phase may take that says nothing else, and a process that says nothing
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
        self.period = _period(stall_seconds)
        self._phase = _Phase(Beat(0, "starting", _now()), time.monotonic(), stall_seconds)
        self._tick = 0
        self._ticks: dict[int, tuple[int, float]] = {}
        """Of other ranks the last count that was read, and when it was first."""
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
        self._publish(Beat(self._phase.beat.count, LEFT, _now()))
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
        while not self._stopped.wait(self.period):
            phase = self._phase
            self._publish(phase.beat)
            is_late = time.monotonic() - phase.begin > phase.limit
            missed = self._missed()
            if is_late or missed:
                self._end_process(phase, None if is_late else missed)

    def _missed(self) -> set[int]:
        """Return the ranks, of those that this one looks at, whose count stands still for long."""
        if self.store is None:
            return set()
        others = range(1, self.world_size) if self.rank == 0 else (0,)
        found, now = self._read(others), time.monotonic()
        for rank in others:
            tick = found[rank].tick if rank in found else -1
            if rank not in self._ticks or self._ticks[rank][0] != tick:
                self._ticks[rank] = tick, now
        if self.store is None:  # it has failed meanwhile
            return set()
        left = {rank for rank, beat in found.items() if beat.phase == LEFT}
        still = {r for r, (_, since) in self._ticks.items() if now - since > self.stall_seconds}
        return still - left

    def _publish(self, beat: Beat) -> None:
        if self.store is None:
            return
        self._tick += 1
        content = asdict(beat) | {"tick": self._tick}
        try:
            self.store.set(_key(self.rank), json.dumps(content))
        except RuntimeError:  # the job ends, or its first machine is gone
            self.store = None

    def _end_process(self, phase: _Phase, missed: set[int] | None) -> None:
        """End it, unless it goes on while the others are looked at.

        Args: missed: others that are why, unless they go on; None: this rank's phase is too long
        """
        sentence, silent = self._sentence(phase)
        goes_on = phase is not self._phase if missed is None else not missed & set(silent)
        if goes_on or self._stopped.is_set():
            return
        faulthandler.dump_traceback(self._file, all_threads=True)
        self._file.flush()
        self.tell(f"{sentence}; stacks of all threads: {self.folder}", silent)
        self.end(EXIT_CODE)

    def _sentence(self, phase: _Phase) -> tuple[str, list[int]]:
        """Return what to say, and the ranks that say nothing themselves."""
        own = phase.beat
        beats, frozen = self._look_around(own)
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

    def _look_around(self, own: Beat) -> tuple[dict[int, Beat], list[int]]:
        """Return what the ranks do, and those whose processes run no more."""
        if self.store is None:
            return {self.rank: own}, []
        first = self._read(range(self.world_size))
        deadline = time.monotonic() + 5 * self.period
        while time.monotonic() < deadline:  # as the others do, who look at this one
            time.sleep(self.period)
            self._publish(own)
        then = self._read(range(self.world_size)) if self.store is not None else first
        frozen = [
            rank
            for rank in range(self.world_size)
            if rank != self.rank
            and (rank not in then or (rank in first and then[rank].tick == first[rank].tick))
        ]
        left = {rank for rank, beat in then.items() if beat.phase == LEFT}
        beats = {rank: beat for rank, beat in first.items() if rank not in left}
        return beats | {self.rank: own}, [rank for rank in frozen if rank not in left]

    def _read(self, ranks: Iterable[int]) -> dict[int, Beat]:
        found = {}
        assert self.store is not None
        try:
            for rank in ranks:
                if self.store.check([_key(rank)]):
                    found[rank] = Beat(**json.loads(self.store.get(_key(rank))))
        except RuntimeError:
            self.store = None
        return found


def most_seconds(limit: float, stall_seconds: float) -> float:
    """Return how long after its begin a phase that may take `limit` seconds is told of, at most."""
    return limit + _MOST_PERIODS * _period(stall_seconds)


def _period(stall_seconds: float) -> float:
    return min(max(stall_seconds / 10, 0.05), 2.0)


def _key(rank: int) -> str:
    return f"titan_motif/watchdog/{rank}"


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:4]))
    return f"ranks {shown}{f' and {len(ranks) - 4} more' if len(ranks) > 4 else ''}"


def _now() -> str:
    return time.strftime("%H:%M:%S")
