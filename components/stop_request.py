"""Whether a run should end at the next edge: any rank is asked by a signal, all agree on it."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def taken_signals() -> tuple[signal.Signals, ...]:
    """Return SIGNALS, without SIGHUP where it is ignored, as under `nohup`."""
    is_kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(each for each in SIGNALS if each != signal.SIGHUP or not is_kept)


def leave_to_the_rank(worker: int = 0) -> None:
    """Let a process that a rank has started ignore the signals: the rank ends it, when it is done.

    They come to a rank's whole process group, and a worker that dies of one ends the run.
    """
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


@contextlib.contextmanager
def kept_from_new_processes() -> Iterator[None]:
    """Keep the signals from processes that are started meanwhile, for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WaitEnded(BaseException):
    """A signal has come to a rank that waits; no Exception, which what waits may catch."""


class StopRequest:
    """Takes signals, and lets all ranks decide alike.

    A signal comes to some ranks before others, or to one alone. So nobody acts on it: at every edge
    where a run could end, all ranks exchange whether one came, in a number on the CPU.

    `group` is to be a gloo group of all ranks, as soon as there is one; None for one rank.
    """

    def __init__(self) -> None:
        self.group: dist.ProcessGroup | None = None
        self.received: signal.Signals | None = None
        """The first one that came to this rank."""
        self.received_at: float | None = None
        """As time.time has it; once all have agreed, when the first one came to any rank."""

        self._is_waiting = False

    def install(self) -> None:
        """Take the signals from now on."""
        for each in taken_signals():
            signal.signal(each, self._receive)

    def ending(self, wait: Callable[[], T]) -> T:
        """Return what a call returns that may wait for ever; WaitEnded if a signal comes first."""
        self._is_waiting = True
        try:
            if self.received is not None:
                raise WaitEnded
            return wait()
        finally:
            self._is_waiting = False

    def agreed(self) -> signal.Signals | None:
        """Return a signal that came to any rank, the same on all, None if none did.

        Every rank has to call it as often as the others.
        """
        number = 0 if self.received is None else int(self.received)
        if self.group is not None:
            since = math.inf if self.received_at is None else self.received_at
            told = torch.tensor([number, -since], dtype=torch.float64)
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self.group)
            number = int(told[0])
            if number:
                self.received_at = -float(told[1])
        return signal.Signals(number) if number else None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.received_at = signal.Signals(number), time.time()
        if self._is_waiting:
            raise WaitEnded
