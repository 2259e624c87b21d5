"""Runs that are told to stop at any moment, and started again."""

import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from titan_motif.components.foreign_files import read_json
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.kills import StepWatch, reference_run, whole_steps
from titan_motif.drill.run_record import RunRecord, first_difference, read_run
from titan_motif.drill.runs import Moment, last_line, start
from titan_motif.drill.small_job import shared_folder, small_job
from titan_motif.run_control import EXIT_PREEMPTED
from titan_motif.run_folder import PREEMPTED

LIMIT_SECONDS = 20
"""From the signal to the end of the run; torchrun kills after 30."""
_SECONDS = 90
_LAUNCHED_EACH = 10
"""Every so many cases, the last of them, the job is started by the product's own launcher."""
_STEPS: dict[Moment, Sequence[int]] = {
    "step": range(1, 14),
    "save": (3, 6, 9, 12),
    "validation": (4, 8, 12),
}
"""That moments are drawn from: the whole run but its end, which may be over by then."""
_VALIDATION = ("freq=4", "steps=60", "seq_len=16", "local_batch_size=1")
_ATTEMPTS = 3
"""To reach a moment: a busy machine looks too late."""


class Case(NamedTuple):
    """A signal."""

    mode: str
    """checkpoint.async_mode"""
    num_ranks: int
    rank: int | None
    """The rank that gets it; None for all."""
    launches: bool
    number: signal.Signals
    moment: Moment
    step: int
    after_seconds: float
    """It comes this long after the step, the save of it or the validation after it has begun."""

    def __str__(self) -> str:
        ranks = f"{self.num_ranks} rank{'s' if self.num_ranks > 1 else ''}"
        to = "launcher" if self.launches else "all" if self.rank is None else f"rank {self.rank}"
        when = f"{self.after_seconds:.3f} s after {self.moment} {self.step} began"
        return f"{self.mode}, {ranks}, {self.number.name} to {to} {when}"


def draw_case(number: int) -> Case:
    """Return a case by its number: two of five fall into a save, or shortly after."""
    draw = random.Random(number)
    num_ranks = 1 + number // 2 % 2
    launches = number % _LAUNCHED_EACH == _LAUNCHED_EACH - 1
    others = (signal.SIGINT, signal.SIGUSR1)
    moment: Moment = draw.choices(("step", "save", "validation"), (2, 2, 1))[0]
    return Case(
        mode=("disabled", "async")[number % 2],
        num_ranks=num_ranks,
        rank=draw.randrange(2) if num_ranks == 2 and draw.random() < 0.25 else None,
        launches=launches,
        number=draw.choice(others) if draw.random() < 0.2 and not launches else signal.SIGTERM,
        moment=moment,
        step=draw.choice(_STEPS[moment]),
        after_seconds=draw.uniform(0, 0.1),
    )


def run(number: int, folder: Path) -> Outcome:
    """Stop a run at the moment of a case's number, and start it again."""
    case, shared = draw_case(number), shared_folder(folder)
    job, reference = small_job(shared), reference_run(shared, case.num_ranks)
    settings = [f"--job.config_file={job}", f"--checkpoint.async_mode={case.mode}"]
    if case.moment == "validation":
        settings += ["--validation.enable=true", *(f"--validation.{each}" for each in _VALIDATION)]
    try:
        for attempt in range(_ATTEMPTS):
            outcome = _stop(case, settings, folder / str(attempt), reference)
            if outcome is not None:
                return outcome
    except TimeoutError as error:
        return Outcome(False, f"{case}: {error}")
    return Outcome(False, f"{case}: was over before, {_ATTEMPTS} times")


def _stop(
    case: Case, settings: Sequence[str], folder: Path, reference: RunRecord
) -> Outcome | None:
    """Stop a run, and start it again; None: it was over before."""
    with start(settings, folder, case.num_ranks, launches=case.launches) as run:
        watch = StepWatch(folder / "checkpoint")
        watch.until(lambda: run.has_begun(case.moment, case.step) or run.is_over, _SECONDS)
        time.sleep(case.after_seconds)
        if run.is_over and not any(run.exit_codes()):
            return None
        run.signal(case.number, case.rank)
        begin = time.monotonic()
        codes = run.wait(_SECONDS)
        seconds, log = time.monotonic() - begin, run.log()
    missed = _missed(folder, codes, seconds, log)
    if missed is not None:
        return Outcome(False, f"{case}: {missed}")
    step = read_json(folder / PREEMPTED)["step"]
    with start(settings, folder, case.num_ranks, launches=case.launches) as run:
        codes = run.wait(_SECONDS)
        missed = f"then ended with {codes}: {last_line(run.log())}" if any(codes) else None
    missed = missed or first_difference(read_run(folder), reference)
    told = missed or f"step {step} saved and over after {seconds:.1f} s"
    return Outcome(missed is None, f"{case}: {told}")


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
    title="SIGTERM (in a fifth SIGINT or SIGUSR1) at random moments of the whole run, two of five "
    "in a save, one of five in validation: sync and async, 1 and 2 ranks, to all or to one",
    bar="saved, exit code 75 within 20 s of the signal; started again, the run ends bit for bit "
    "like one that nobody disturbed (at least 59 of 60)",
    count=60,
    num_quick=2,
    run=run,
)
