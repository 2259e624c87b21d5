"""Real small runs in processes of their own.

    settings = [f"--job.config_file={small_job(shared)}", "--checkpoint.async_mode=async"]
    with start(settings, folder, num_ranks=2) as run:   # or start(..., launches=True): torchrun
        ...                                             # run.signal(SIGTERM), run.signal(9, rank=1)
        codes = run.wait(seconds=60)                    # exit codes; -9 of a rank that was killed
    print(run.log())
    first_difference(read_run(folder), read_run(reference_folder))   # None, or what differs first

A rank is forked from a process that has imported all of it and done nothing else, so that a start
costs a second, not ten; the launcher's part, the store in which ranks meet, is this process's.
Whatever is left of a run when the `with` ends is killed, its workers too. A run that is started
again in its folder goes on; each start has its log and its record of what the models were given.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from unittest import mock

from torch.distributed import TCPStore

from titan_motif.drill.rank import FAULT, READ, VALIDATING, run_forked
from titan_motif.drill.run_record import STARTS
from titan_motif.experiments.job import launcher

ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
"""One thread a rank: two ranks then add numbers in the same order each time."""
Moment = Literal["step", "save", "validation"]
"""What of a step begins."""
_LEFT_SECONDS = 20
"""What the kernel may take to end what was killed."""


class SmallRun:
    """A run that was started; see the module's text.

    Args:
        folder: the run's
        start:  the beginning of the names of this start's files
    """

    def __init__(self, folder: Path, start: Path, num_ranks: int) -> None:
        self.folder, self.num_ranks = folder, num_ranks
        self.begun = time.monotonic()
        self._start, self._log = start, Path(f"{start}.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        self.signal(signal.SIGKILL)
        self.wait(_LEFT_SECONDS)

    @property
    def pids(self) -> list[int]:
        """The ranks' processes, by rank; the launcher's are there once it has started them."""
        raise NotImplementedError

    def exit_codes(self) -> list[int | None]:
        """Return the exit code of each rank (of the launcher alone), None of one that runs."""
        raise NotImplementedError

    @property
    def is_over(self) -> bool:
        """Whether all of it has ended."""
        return None not in self.exit_codes()

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all; SIGKILL to the processes that these started too."""
        for i, (pid, code) in enumerate(zip(self.pids, self.exit_codes(), strict=True)):
            if code is None and rank in (None, i):
                _send(pid, number)

    def wait(self, seconds: float) -> list[int]:
        """Return the exit codes once all has ended; TimeoutError, and it is killed, if not so."""
        deadline = time.monotonic() + seconds
        while not self.is_over:
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                codes = self.exit_codes()
                raise TimeoutError(f"{self.folder}: not over after {seconds} s (codes {codes})")
            time.sleep(0.01)
        return [code for code in self.exit_codes() if code is not None]

    def until(self, is_so: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so; RuntimeError, one line, if the run ends before it is.

        Raises: TimeoutError, and all is killed, if it is not so in time
        """
        deadline = time.monotonic() + seconds
        while not is_so():
            if self.is_over and not is_so():
                codes = self.exit_codes()
                raise RuntimeError(f"{self.folder}: exit codes {codes}: {last_line(self.log())}")
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"{self.folder}: nothing came of it in {seconds} s")
            time.sleep(0.01)

    def has_begun(self, what: Moment, step: int) -> bool:
        """Return whether a step, the save of it or the validation after it has begun."""
        if what == "save":
            return (self.folder / "checkpoint" / f"step-{step}").exists()
        record = Path(f"{self._start}-0.jsonl")
        if what == "validation":
            return record.with_name(f"{record.stem}{VALIDATING}{step}").exists()
        lines = record.read_text().splitlines() if record.exists() else []
        return bool(lines) and json.loads(lines[-1])["step"] >= step

    def log(self) -> str:
        """Return what this start's ranks have printed, and the launcher."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class _ForkedRun(SmallRun):
    def __init__(
        self, folder: Path, start: Path, num_ranks: int, settings: Sequence[str], fault: str
    ) -> None:
        super().__init__(folder, start, num_ranks)
        self._store = TCPStore("localhost", 0, None, True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": num_ranks,
            "LOCAL_WORLD_SIZE": num_ranks,
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": self._store.port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            READ: f"{start}-",
            FAULT: fault,
        }
        self._ranks = [
            self._fork(settings, shared | {"RANK": rank, "LOCAL_RANK": rank})
            for rank in range(num_ranks)
        ]

    def _fork(self, settings: Sequence[str], environment: dict[str, Any]) -> ForkServerProcess:
        told = {name: str(value) for name, value in environment.items()}
        process = forking().Process(target=run_forked, args=(settings, told, str(self._log)))
        process.start()
        return process

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._ranks if process.pid is not None]

    def exit_codes(self) -> list[int | None]:
        return [process.exitcode for process in self._ranks]


class _LaunchedRun(SmallRun):
    def __init__(
        self, folder: Path, start: Path, num_ranks: int, settings: Sequence[str], fault: str
    ) -> None:
        super().__init__(folder, start, num_ranks)
        command = [*launcher(num_ranks, folder), "-m", "titan_motif.drill.rank", *settings]
        with self._log.open("w") as log:
            self.launcher = subprocess.Popen(
                command,
                env=os.environ
                | ENVIRONMENT
                | {READ: f"{start}-", FAULT: fault, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pids(self) -> list[int]:
        return _children(self.launcher.pid)

    def exit_codes(self) -> list[int | None]:
        return [self.launcher.poll()]

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to the launcher, which forwards all but SIGKILL."""
        if self.launcher.poll() is not None:
            return
        ranks = self.pids  # they outlive a launcher that is killed
        if rank is None:
            self.launcher.send_signal(number)
        if rank is not None or number == signal.SIGKILL:
            for pid in ranks if rank is None else ranks[rank : rank + 1]:
                _send(pid, number)


def start(
    settings: Sequence[str],
    folder: Path,
    num_ranks: int = 1,
    *,
    launches: bool = False,
    fault: str = "",
) -> SmallRun:
    """Start a job in a folder, and return it at once.

    Args:
        settings: --section.field=value, --job.config_file among them
        launches: by the product's own launcher, which costs some ten seconds
        fault:    that a rank puts into itself (titan_motif.drill.rank_faults)
    """
    starts = folder / STARTS
    starts.mkdir(parents=True, exist_ok=True)
    number = 1 + sum(1 for _ in starts.glob("*.log"))
    name = starts / f"{number:03}"
    Path(f"{name}.log").touch()
    kind = _LaunchedRun if launches else _ForkedRun
    return kind(folder, name, num_ranks, [*settings, f"--job.dump_folder={folder}"], fault)


def run_to_end(
    settings: Sequence[str], folder: Path, num_ranks: int = 1, *, seconds: float = 300
) -> str:
    """Run a job to its end and return its log; RuntimeError with its last line if it fails."""
    with start(settings, folder, num_ranks) as run:
        codes = run.wait(seconds)
        if any(codes):
            raise RuntimeError(f"{folder}: exit codes {codes}: {last_line(run.log())}")
        return run.log()


def last_line(log: str) -> str:
    """Return the last line of a log that says something."""
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "no output")


def forking() -> Any:
    """Return the context whose processes are forked from one that has imported `rank`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "titan_motif.drill.rank"])
    with mock.patch.dict(os.environ, ENVIRONMENT):
        multiprocessing.forkserver.ensure_running()
    return context


def _send(pid: int, number: int) -> None:
    """Send a signal to a process, SIGKILL to its whole group; nothing if it has gone."""
    if number == signal.SIGKILL:
        with contextlib.suppress(ProcessLookupError):  # of one that was forked a moment ago
            os.killpg(pid, number)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started, in order; none if it has gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]
