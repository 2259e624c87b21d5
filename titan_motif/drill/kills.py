"""Runs that are killed at any moment, and started again."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from titan_motif.components.history import STARTS_FILE, read_lines
from titan_motif.components.saved_steps import saved_steps
from titan_motif.components.seal import SEAL, content_problem
from titan_motif.components.whole_files import alone_in
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.run_record import RunRecord, first_difference, read_run
from titan_motif.drill.runs import Moment, SmallRun, last_line, run_to_end, start
from titan_motif.drill.small_job import shared_folder, small_job

STEPS_SAVED = (3, 6, 9, 12, 15)
KEPT = 3
"""checkpoint.keep_latest_k of the job."""
_SECONDS = 90
"""What a run may take; it takes three."""
_ATTEMPTS = 5
_LAUNCHED_EACH = 20
"""Every so many cases, the last of them, the job is started by the product's own launcher."""


class Case(NamedTuple):
    """A kill."""

    mode: str
    """checkpoint.async_mode"""
    num_ranks: int
    rank: int | None
    """The rank that is killed; None for all."""
    launches: bool
    moment: Moment
    step: int
    after_seconds: float
    """Killed this long after the step, or the save of it, has begun."""

    def __str__(self) -> str:
        ranks = f"{self.num_ranks} rank{'s' if self.num_ranks > 1 else ''}"
        killed = "all" if self.rank is None else f"rank {self.rank}"
        how = ", launcher" if self.launches else ""
        when = f"{self.after_seconds:.3f} s after {self.moment} {self.step} began"
        return f"{self.mode}, {ranks}{how}, {killed} killed {when}"


def draw_case(number: int, attempt: int = 0) -> Case:
    """Return a case by its number: two of three fall into a save, or shortly after.

    Few fall before the first save, or into it: from nothing, a run begins again.

    Args:
        attempt: the number of earlier moments at which the run was over already
    """
    draw = random.Random(number + 1_000_003 * attempt)
    num_ranks = 1 + number // 2 % 2
    launches = number % _LAUNCHED_EACH == _LAUNCHED_EACH - 1
    moment: Moment = "save" if draw.random() < 2 / 3 else "step"
    steps = STEPS_SAVED if moment == "save" else range(1, STEPS_SAVED[-1] + 1)
    weights = [1 if step <= STEPS_SAVED[0] else 8 for step in steps]
    return Case(
        mode=("disabled", "async")[number % 2],
        num_ranks=num_ranks,
        rank=draw.randrange(2) if num_ranks == 2 and draw.random() < 0.25 else None,
        launches=launches,
        moment=moment,
        step=draw.choices(steps, weights)[0],
        after_seconds=draw.uniform(0, 0.25 if moment == "save" else 0.1),
    )


def reference_run(shared: Path, num_ranks: int) -> RunRecord:
    """Return what the run comes to that nobody disturbs, of either mode; it is made once."""
    folder, job = shared / f"undisturbed-{num_ranks}", small_job(shared)
    with alone_in(shared):
        if not (folder / "done").exists():
            run_to_end([f"--job.config_file={job}"], folder, num_ranks)
            (folder / "done").touch()
    return read_run(folder)


class StepWatch:
    """Which steps of a run were whole at any time, and whether one went that had to stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[int] = set()
        self.lost: str | None = None

    def look(self) -> None:
        """Look at the folder; a step may go once as many newer ones are whole as are kept."""
        seals = (path.parent.name for path in self.folder.glob(f"step-*/{SEAL}"))
        whole = {int(name.removeprefix("step-")) for name in seals if name[5:].isdecimal()}
        for step in self.seen - whole:
            # What is newer may have been superseded in turn.
            newer = sum(other > step for other in self.seen | whole)
            if newer < KEPT and not self.lost:
                self.lost = f"step {step} was whole and has gone; whole are {sorted(whole)}"
        self.seen |= whole

    def until(self, is_over: Callable[[], bool], seconds: float) -> None:
        """Look every few milliseconds until something is so."""
        deadline = time.monotonic() + seconds
        while not is_over() and time.monotonic() < deadline:
            self.look()
            time.sleep(0.002)
        self.look()


def kill(run: SmallRun, case: Case, watch: StepWatch) -> bool:
    """Kill a run at a case's moment, wait for its end, and return whether it was not over then."""
    watch.until(lambda: run.has_begun(case.moment, case.step) or run.is_over, _SECONDS)
    moment = time.monotonic() + case.after_seconds
    watch.until(lambda: time.monotonic() > moment or run.is_over, case.after_seconds)
    run.signal(signal.SIGKILL, case.rank)
    watch.until(lambda: run.is_over, _SECONDS)
    codes = run.wait(0.1)
    watch.look()
    return any(codes)  # 0 is that of a rank, or of the launcher, that came to its end


def whole_steps(folder: Path) -> list[int]:
    """Return the steps of a checkpoint folder that are whole to their last byte, newest first."""
    return [
        saved.step
        for saved in saved_steps(folder)
        if not saved.problem and not content_problem(Path(saved.path))
    ]


def run_case(case: Case, folder: Path, job: Path, reference: RunRecord) -> Outcome | None:
    """Start a run, kill it, start it again, and see what became of it; None: it was over before."""
    settings = [f"--job.config_file={job}", f"--checkpoint.async_mode={case.mode}"]
    told, watch = str(case), StepWatch(folder / "run" / "checkpoint")
    try:
        with start(settings, folder / "run", case.num_ranks, launches=case.launches) as run:
            if not kill(run, case, watch):
                return None
        before = whole_steps(watch.folder)
        with start(settings, folder / "run", case.num_ranks, launches=case.launches) as run:
            watch.until(lambda: run.is_over, _SECONDS)
            codes, log = run.wait(0.1), run.log()
    except TimeoutError as error:
        return Outcome(False, f"{told}: {error}")
    missed = _missed(folder / "run", before, watch, codes, log, reference)
    went_on = f"went on from step {before[0]}" if before else "began again, no step was whole"
    return Outcome(missed is None, f"{told}: {missed or went_on}")


def _missed(
    folder: Path,
    before: list[int],
    watch: StepWatch,
    codes: list[int],
    log: str,
    reference: RunRecord,
) -> str | None:
    """Return what is not as it has to be after the second start; None if all is."""
    if any(codes):
        return f"the second start ended with {codes}: {last_line(log)}"
    if watch.lost:
        return watch.lost
    newest = before[0] if before else 0
    says = f"continuing from step {newest} " if newest else "starting from the first step"
    if says not in log:
        return f"the second start does not say {says!r}"
    starts, _ = read_lines(folder / STARTS_FILE)
    if starts[-1]["step"] != newest:
        return f"the second start began at step {starts[-1]['step']}, {newest} was whole"
    kept = whole_steps(folder / "checkpoint")  # more, if nothing was left to save
    if kept[:KEPT] != sorted(STEPS_SAVED, reverse=True)[:KEPT]:
        return f"the steps {kept} are whole at the end"
    return first_difference(read_run(folder), reference)


def run(number: int, folder: Path) -> Outcome:
    """Kill a run at the moment of a case's number, and start it again."""
    shared = shared_folder(folder)
    for attempt in range(_ATTEMPTS):
        case = draw_case(number, attempt)
        reference = reference_run(shared, case.num_ranks)
        outcome = run_case(case, folder / str(attempt), small_job(shared), reference)
        if outcome is not None:
            return outcome
    return Outcome(False, f"the run was over before each of {_ATTEMPTS} moments")


KILLS = Fault(
    name="kills",
    title="kill -9 at 200 moments of the whole run, two of three in a save or shortly after it: "
    "sync and async, 1 and 2 ranks, all ranks or one",
    bar="the run goes on from the newest whole step and ends bit for bit like one that nobody "
    "disturbed; no whole step is lost; nothing begins from random weights but a run that had none",
    count=200,
    num_quick=4,
    run=run,
)
