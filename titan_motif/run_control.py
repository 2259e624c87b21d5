"""What comes to a run from outside: a request to stop, and a watchdog over its progress.

Edges are the places where a run can end so that nothing is lost: before a step, once its data are
read, between its micro-batches (the step is then as if it had not begun), between batches of
validation. A rank that waits for data when a signal comes to it reads no further. At an edge
all ranks decide together (titan_motif.components.stop_request).
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from torchtitan.tools.logging import logger

from titan_motif.components.stop_request import StopRequest
from titan_motif.components.watchdog import Watchdog
from titan_motif.components.whole_files import replace_text
from titan_motif.config import JobConfig
from titan_motif.run_folder import PREEMPTED, STALLS

EXIT_PREEMPTED = os.EX_TEMPFAIL
"""75: the run has saved, and goes on when it is started again."""
MARK = "TITAN_MOTIF_PREEMPTION_MARK"
"""Environment variable: a file that titan_motif.launch looks for, since torchrun tells no codes."""


class Preempted(Exception):
    """All ranks have agreed to end the run here."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.signal = received


class RunControl:
    """Of one rank.

    Args:
        stop: has taken signals since the process began
        tell: is given the one sentence on a stall, and the ranks that cannot say it
    """

    def __init__(
        self, config: JobConfig, stop: StopRequest, tell: Callable[[str, Sequence[int]], None]
    ) -> None:
        self.folder, self.stop = Path(config.job.dump_folder), stop
        stall_seconds, self.slow_seconds = config.watchdog.limits(config.comm)
        world_size, rank = dist.get_world_size(), dist.get_rank()
        if world_size > 1:
            patience = timedelta(seconds=config.comm.init_timeout_seconds)
            stop.group = dist.new_group(backend="gloo", timeout=patience)
        self.is_first_rank = rank == 0
        self.watchdog: Watchdog | None = None
        if config.watchdog.enable:
            self.watchdog = Watchdog(
                rank,
                world_size,
                self.folder / STALLS,
                stall_seconds,
                tell,
                _get_default_store().clone() if world_size > 1 else None,
            )
            self.watchdog.start()
            self.enter("loading", is_slow=True)

    def enter(self, phase: str, seconds: float | None = None, *, is_slow: bool = False) -> None:
        """Say what this rank does from now on, and what that may take."""
        if self.watchdog is not None:
            self.watchdog.enter(phase, self.slow_seconds if is_slow else seconds)

    def begin(self) -> None:
        """Forget that the run was stopped before: what was saved is loaded."""
        if self.is_first_rank:
            (self.folder / PREEMPTED).unlink(missing_ok=True)

    def edge(self, *, is_slow: bool = True) -> None:
        """Raise Preempted on all ranks, if a signal came to any; all have to call it alike.

        Args: is_slow: whether others may come from what takes long
        """
        self.enter("waiting for the others", is_slow=is_slow)
        received = self.stop.agreed()
        if received is not None:
            raise Preempted(received)

    def leave_mark(self, step: int, received: signal.Signals) -> None:
        """Say, after the save (if a step was done), that the run was stopped and can go on."""
        if self.is_first_rank:
            received_at = self.stop.received_at
            seconds = None if received_at is None else round(time.time() - received_at, 2)
            content = {
                "step": step,
                "signal": received.name,
                "seconds": seconds,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            replace_text(self.folder / PREEMPTED, json.dumps(content, indent=1) + "\n")
            what = f"step {step} is saved" if step else "no step was done yet"
            logger.info(f"{received.name}: {what}; started again, the run goes on there")
        if MARK in os.environ:
            with contextlib.suppress(OSError):  # the launcher was killed, its folder is gone
                Path(os.environ[MARK]).touch()

    def close(self) -> None:
        """Watch no more."""
        if self.watchdog is not None:
            self.watchdog.stop()
