"""Numbers of a run that are made NaN or infinite on one rank."""

import random
import re
from pathlib import Path
from typing import NamedTuple

from titan_motif.components.foreign_files import read_json
from titan_motif.components.history import read_history
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.kills import whole_steps
from titan_motif.drill.rank import STRUCK
from titan_motif.drill.run_record import STARTS
from titan_motif.drill.runs import last_line, start
from titan_motif.drill.small_job import shared_folder, small_job
from titan_motif.drill.spoil import Place

PLACES: tuple[Place, ...] = ("loss", "gradient", "norm", "logits", "parameter", "state")
NAMED = {
    "loss": r"the loss of data-parallel rank {rank} \(micro-batch \d\); the documents .* of \w+ \(",
    "gradient": r"the gradient norm, the gradient of [\w.]+;",
    "norm": r"the gradient norm;",
    "logits": r"the largest attention logit;",
    "parameter": r"the values of [\w.]+; no later step",
    "state": r"the optimizer's state of [\w.]+; no later step",
}
"""What the run has to say was not finite, that and nothing else."""
VALUES = ("nan", "inf", "-inf")
OPTIMIZERS = ("ParallelMuon", "AdamW")
LAST_STEP = 15
"""Of the run."""
_SECONDS = 90


class Case(NamedTuple):
    """A number that is spoiled."""

    place: Place
    value: str
    optimizer: str
    num_ranks: int
    rank: int
    step: int
    log_freq: int
    """With 5 it is the next step that finds out, with 1 the step's line."""

    def __str__(self) -> str:
        return (
            f"{self.value} in the {self.place} of step {self.step} on rank {self.rank} of "
            f"{self.num_ranks}, {self.optimizer}, a line every {self.log_freq}"
        )


def draw_case(number: int) -> Case:
    """Return a case: 72 numbers have every place, value, optimizer, and 1 or 2 ranks, once."""
    draw = random.Random(number)
    number, place = divmod(number, len(PLACES))
    number, value = divmod(number, len(VALUES))
    number, num_ranks = divmod(number, 2)
    return Case(
        PLACES[place],
        VALUES[value],
        OPTIMIZERS[number % 2],
        2 - num_ranks,
        draw.randrange(2 - num_ranks),
        draw.randint(2, LAST_STEP),
        draw.choice([1, 5]),
    )


def run(number: int, folder: Path) -> Outcome:
    """Spoil a number of a run, and see what the step changed, and what was said."""
    case = draw_case(number)
    job = small_job(shared_folder(folder))
    settings = [f"--job.config_file={job}", f"--optimizer.name={case.optimizer}"]
    settings += [f"--metrics.log_freq={case.log_freq}"]
    fault = f"spoil {case.place} {case.value} {case.step} {case.rank}"
    try:
        with start(settings, folder / "run", case.num_ranks, fault=fault) as run:
            codes, log = run.wait(_SECONDS), run.log()
    except TimeoutError as error:
        return Outcome(False, f"{case}: {error}")
    missed = _missed(folder / "run", case, codes, log)
    done = "stopped" if case.place in ("parameter", "state") else "skipped"
    return Outcome(missed is None, f"{case}: {missed or done}")


def _missed(folder: Path, case: Case, codes: list[int], log: str) -> str | None:
    """Return what is not as it has to be; None if all is."""
    seen = [read_json(file, is_record=True) for file in (folder / STARTS).glob(f"*{STRUCK}")]
    if seen != [{"is_refused": True, "is_unchanged": True}] * case.num_ranks:
        return f"the ranks saw {seen}"
    ends_run = case.place in ("parameter", "state")
    says = f"step {case.step} {'changed nothing' if ends_run else 'is skipped'}: not finite: "
    told = [line for line in log.splitlines() if says in line]
    if not told or not re.search(says + NAMED[case.place].format(rank=case.rank), told[0]):
        return f"the log does not name it: {told[:1] or last_line(log)}"
    if not ends_run:
        skipped = read_history(folder)[-1]["optimizer/skipped_steps"]
        return f"ended with {codes}, {skipped} skipped" if any(codes) or skipped != 1 else None
    saved = whole_steps(folder / "checkpoint")
    if any(code != 1 for code in codes) or any(step >= case.step for step in saved):
        return f"ended with {codes}, saved {saved}"
    return None


NUMBERS = Fault(
    name="numbers",
    title="NaN, inf, -inf in the loss, a gradient, the gradients' norm, the logits' maxima, a "
    "parameter, the optimizer's state, on one rank: ParallelMuon and AdamW, 1 and 2 ranks",
    bar="the step is skipped, or the run stopped, before anything changes, on all ranks alike; a "
    "line names what it was",
    count=72,
    num_quick=2,
    run=run,
)
