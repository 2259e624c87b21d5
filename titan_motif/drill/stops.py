"""Runs that are told to stop at any moment, and started again."""

import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

from titan_motif.components.foreign_files import read_json
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.kills import StepWatch, reference_run, whole_steps
from titan_motif.drill.run_record import STARTS, first_difference, read_run
from titan_motif.drill.runs import SmallRun, last_line, start
from titan_motif.drill.small_job import shared_folder, small_job
from titan_motif.run_control import EXIT_PREEMPTED
from titan_motif.run_folder import PREEMPTED

LIMIT_SECONDS = 20
"""From the signal to the end of the run; torchrun kills after 30."""
_SECONDS = 90
_LAUNCHED_EACH = 10
"""Every so many cases, the last of them, the job is started by the product's own launcher."""
_STEPS_SAVED = (3, 6, 9, 12)


class Case(NamedTuple):
    """A signal."""

    mode: str
    """checkpoint.async_mode"""
    num_ranks: int
    rank: int | None
    """The rank that gets it; None for all."""
    launches: bool
    number: signal.Signals
    saving_step: int | None
    """It comes this long after the step's folder has appeared; None: after training began."""
    after_seconds: float

    def __str__(self) -> str:
        ranks = f"{self.num_ranks} rank{'s' if self.num_ranks > 1 else ''}"
        since = "training began" if self.saving_step is None else f"save {self.saving_step} began"
        to = "launcher" if self.launches else "all" if self.rank is None else f"rank {self.rank}"
        when = f"{self.after_seconds:.3f} s after {since}"
        return f"{self.mode}, {ranks}, {self.number.name} to {to} {when}"


def draw_case(number: int) -> Case:
    """Return a case by its number: half of them fall into a save, or shortly after."""
    draw = random.Random(number)
    num_ranks = 1 + number // 2 % 2
    launches = number % _LAUNCHED_EACH == _LAUNCHED_EACH - 1
    others = (signal.SIGINT, signal.SIGUSR1)
    return Case(
        mode=("disabled", "async")[number % 2],
        num_ranks=num_ranks,
        rank=draw.randrange(2) if num_ranks == 2 and draw.random() < 0.25 else None,
        launches=launches,
        number=draw.choice(others) if draw.random() < 0.2 and not launches else signal.SIGTERM,
        saving_step=draw.choice(_STEPS_SAVED) if draw.random() < 0.5 else None,
        after_seconds=draw.uniform(0, 0.1 if launches else 0.3),
    )


def run(number: int, folder: Path) -> Outcome:
    """Stop a run at the moment of a case's number, and start it again."""
    case, shared = draw_case(number), shared_folder(folder)
    job, reference = small_job(shared), reference_run(shared, case.num_ranks)
    settings = [f"--job.config_file={job}", f"--checkpoint.async_mode={case.mode}"]
    run_folder = folder / "run"
    try:
        with start(settings, run_folder, case.num_ranks, launches=case.launches) as run:
            if not _wait_for_moment(run, case):
                return Outcome(False, f"{case}: was over before: {last_line(run.log())}")
            run.signal(case.number, case.rank)
            begin = time.monotonic()
            codes = run.wait(_SECONDS)
            seconds, log = time.monotonic() - begin, run.log()
        missed = _missed(run_folder, codes, seconds, log)
        if missed is None:
            with start(settings, run_folder, case.num_ranks, launches=case.launches) as run:
                codes = run.wait(_SECONDS)
                missed = f"then ended with {codes}: {last_line(run.log())}" if any(codes) else None
        missed = missed or first_difference(read_run(run_folder), reference)
    except TimeoutError as error:
        return Outcome(False, f"{case}: {error}")
    return Outcome(missed is None, f"{case}: {missed or f'saved and over after {seconds:.1f} s'}")


def _wait_for_moment(run: SmallRun, case: Case) -> bool:
    """Return, at a case's moment, whether the run still runs."""
    watch = StepWatch(run.folder / "checkpoint")
    begun = watch.folder / f"step-{case.saving_step}"

    def is_there() -> bool:
        if case.saving_step is not None:
            return begun.exists()
        return any(file.stat().st_size for file in (run.folder / STARTS).glob("*.jsonl"))

    watch.until(lambda: is_there() or run.is_over, _SECONDS)
    time.sleep(case.after_seconds)
    return not run.is_over


def _missed(folder: Path, codes: list[int], seconds: float, log: str) -> str | None:
    """Return what is not as it has to be once the run has stopped; None if all is."""
    if any(code != EXIT_PREEMPTED for code in codes):
        return f"ended with {codes}: {last_line(log)}"
    if seconds > LIMIT_SECONDS:
        return f"took {seconds:.1f} s"
    mark = folder / PREEMPTED
    if not mark.exists():
        return f"left no {PREEMPTED}"
    step, whole = read_json(mark)["step"], whole_steps(folder / "checkpoint")
    if step and step not in whole:
        return f"says that step {step} is saved; whole are {whole}"
    return None


STOPS = Fault(
    name="stops",
    title="SIGTERM (in a fifth SIGINT or SIGUSR1) at random moments, half of them in a save: sync "
    "and async, 1 and 2 ranks, to all or to one",
    bar="saved, exit code 75 within 20 s of the signal; started again, the run ends bit for bit "
    "like one that nobody disturbed (at least 59 of 60)",
    count=60,
    num_quick=2,
    run=run,
)
