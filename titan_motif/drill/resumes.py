"""Runs that are stopped at one point after another and resumed, and one on 1, 2, 4, 2 and 1 ranks.

The run that is resumed is stopped once the step of the point is saved; the steps after it are
compared with those of a run that nobody stopped.
"""

import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from titan_motif.components.curriculum.loader import CurriculumLoader
from titan_motif.components.curriculum.micro_batches import SequenceReader
from titan_motif.components.foreign_files import read_json
from titan_motif.components.history import STARTS_FILE, read_history, read_lines
from titan_motif.components.saved_steps import saved_steps
from titan_motif.components.seal import SEAL
from titan_motif.components.whole_files import alone_in
from titan_motif.config_loading import load_config
from titan_motif.curriculum import build_loader
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.run_record import RunRecord, first_difference, read_run
from titan_motif.drill.runs import run_to_end, start
from titan_motif.drill.small_job import shared_folder, small_job, small_sft_job
from titan_motif.run_control import EXIT_PREEMPTED
from titan_motif.run_folder import PREEMPTED

NUM_COMPARED = 50
"""Steps after a resume."""
LONG = ("--curriculum.total_tokens=21000", "--moving_average.enable=false")
"""About 120 steps; an average of saved steps would follow from where it was saved."""
NO_SAVES = "--checkpoint.interval=1000000"
CHAIN = (1, 2, 4, 2, 1)
"""Ranks of the run that is resumed on other numbers of them."""
CHAIN_STEPS = 10
"""Of each number of ranks."""
_CHAIN_ROUNDING = 1e-4
"""Largest relative difference of a loss: ranks add the same numbers in another order, and every
step carries that on. 1e-5 after 50 steps was seen."""
_SECONDS = 300


class Point(NamedTuple):
    """Where a run is stopped, and how it goes on."""

    name: str
    step: Callable[[CurriculumLoader], int]
    """The last step before the stop."""
    num_ranks: int = 1
    workers: tuple[int, int] = (0, 0)
    """training.dataloader.num_workers before and after the stop."""
    is_preempted: bool = False
    """Stopped by SIGTERM, wherever it is then, not killed once the step is saved."""


def _edge(phase: int, offset: int, loader: CurriculumLoader) -> int:
    """Return a step around the first one of a phase: the last one before it for offset 0."""
    return loader.plan.phase_steps[phase] + offset


def _in_document(loader: CurriculumLoader) -> int:
    """Return a step after which every source goes on in the middle of a document."""
    reader = SequenceReader(loader.order, loader.streams)
    for step in range(5, loader.plan.phase_steps[1] - 2):
        first = int(loader.plan.first_sequence[step])
        where = reader.find(first)
        (piece, *_) = loader.streams[where.source].documents(where.cursor, where.seq_len)
        if piece.begin > 0:
            return step
    raise AssertionError("no step of the first phase ends in a document")


def _end_of_epoch(loader: CurriculumLoader) -> int:
    """Return the last step before the shortest source begins anew."""
    number = min(range(len(loader.streams)), key=lambda i: loader.streams[i].epoch_tokens)
    for step in range(loader.plan.num_steps):
        end = int(loader.plan.first_sequence[step + 1])
        if loader.order.cursors(end)[number] > loader.streams[number].epoch_tokens:
            return step
    raise AssertionError("no source is read twice")


def _share(share: float, loader: CurriculumLoader) -> int:
    return round(share * loader.plan.num_steps)


POINTS = (
    Point("after the first step", lambda loader: 1),
    Point("in a document, while the batch grows", _in_document),
    Point("one step before the edge of two phases", partial(_edge, 1, -1)),
    Point("at the edge of two phases, 0 workers, then 2", partial(_edge, 1, 0), workers=(0, 2)),
    Point("one step after the edge of two phases", partial(_edge, 1, 1)),
    Point("one step before sequences get longer", partial(_edge, 2, -1)),
    Point("where sequences get longer, 2 workers, then 0", partial(_edge, 2, 0), workers=(2, 0)),
    Point(
        "one step after they got longer, 2 workers, then 3", partial(_edge, 2, 1), workers=(2, 3)
    ),
    Point("at the end of a source's epoch", _end_of_epoch),
    Point("while the learning rate decays", partial(_share, 0.59)),
    Point("on 2 ranks, stopped by SIGTERM", partial(_share, 0.2), 2, (0, 2), is_preempted=True),
)


def _reference(shared: Path, name: str, settings: Sequence[str], num_ranks: int) -> RunRecord:
    """Return what a run comes to that nobody stops; it is made once."""
    folder = shared / name
    with alone_in(shared):
        if not (folder / "done").exists():
            run_to_end([*settings, NO_SAVES], folder, num_ranks, seconds=_SECONDS)
            (folder / "done").touch()
    return read_run(folder)


def _stop(
    settings: Sequence[str], folder: Path, num_ranks: int, step: int, *, is_preempted: bool = False
) -> int:
    """Run until a step is saved (preempted: done), stop, and return the step to go on from."""
    seal = folder / "checkpoint" / f"step-{step}" / SEAL
    if is_preempted:
        with start([*settings, NO_SAVES], folder, num_ranks) as run:
            run.until(lambda: last_step(folder) >= step, _SECONDS)
            run.signal(signal.SIGTERM)
            codes = run.wait(_SECONDS)
        if any(code != EXIT_PREEMPTED for code in codes):
            raise RuntimeError(f"{folder}: exit codes {codes} after SIGTERM")
        return read_json(folder / PREEMPTED)["step"]
    with start([*settings, f"--checkpoint.interval={step}"], folder, num_ranks) as run:
        run.until(seal.exists, _SECONDS)
        run.signal(signal.SIGKILL)
        run.wait(_SECONDS)
    for later in saved_steps(folder / "checkpoint"):  # it went on for a moment
        if later.step > step:
            shutil.rmtree(later.path)
    return step


def last_step(folder: Path) -> int:
    """Return the last step that a run has told of, 0 if there is none."""
    return max((line["step"] for line in read_history(folder)), default=0)


def _go_on(settings: Sequence[str], folder: Path, num_ranks: int, step: int, until: int) -> None:
    """Start a run again, and stop it after a step; RuntimeError if it does not take up a step."""
    says = f"continuing from step {step} "
    with start([*settings, NO_SAVES], folder, num_ranks) as run:
        # What the history told before goes once the step is taken up.
        run.until(lambda: says in run.log() and last_step(folder) >= until, _SECONDS)


def _compare(folder: Path, reference: RunRecord, step: int, what: str) -> Outcome:
    compared = range(step + 1, step + NUM_COMPARED + 1)
    difference = first_difference(read_run(folder), reference, compared)
    steps = f"steps {compared[0]} to {compared[-1]}"
    return Outcome(difference is None, f"{what}: {difference or f'{steps} equal bit for bit'}")


def run_point(point: Point, shared: Path, folder: Path) -> Outcome:
    """Stop a run at a point, resume it, and compare the steps after it."""
    settings = [f"--job.config_file={small_job(shared)}", *LONG]
    config = load_config(settings, point.num_ranks)
    step = point.step(build_loader(config, 0, point.num_ranks))
    ranks = point.num_ranks
    reference = _reference(shared, f"long-{ranks}", settings, ranks)
    before, after = (
        [*settings, f"--training.dataloader.num_workers={workers}"] for workers in point.workers
    )
    step = _stop(before, folder / "run", ranks, step, is_preempted=point.is_preempted)
    _go_on(after, folder / "run", ranks, step, step + NUM_COMPARED)
    return _compare(folder / "run", reference, step, f"{point.name} (step {step})")


def run_fine_tuning(shared: Path, folder: Path) -> Outcome:
    """Stop and resume two stages of fine-tuning; the second begins from the first one's end."""
    base = [f"--job.config_file={small_job(shared)}"]
    _reference(shared, "short-1", base, 1)
    stages = [
        [
            f"--job.config_file={small_sft_job(shared, stage)}",
            f"--checkpoint.initial_load_path={shared / begin / 'checkpoint'}",
        ]
        for stage, begin in ((1, "short-1"), (2, "stage-1"))
    ]
    _reference(shared, "stage-1", stages[0], 1)
    reference = _reference(shared, "stage-2", stages[1], 1)
    stopped = _stop(stages[0], folder / "stage-1", 1, 4)
    run_to_end([*stages[0], NO_SAVES], folder / "stage-1", seconds=_SECONDS)
    second = [stages[1][0], f"--checkpoint.initial_load_path={folder / 'stage-1' / 'checkpoint'}"]
    step = _stop(second, folder / "run", 1, 1)
    _go_on(second, folder / "run", 1, step, step + NUM_COMPARED)
    told = f"between stages of fine-tuning (step {stopped} of stage 1, {step} of stage 2)"
    return _compare(folder / "run", reference, step, told)


def run_chain(shared: Path, folder: Path) -> Outcome:
    """Resume a run on 1, 2, 4, 2 and 1 ranks, and compare what was read with a run on one."""
    settings = [
        f"--job.config_file={small_job(shared)}",
        *LONG,
        "--curriculum.local_batch_tokens=32",
    ]
    reference = _reference(shared, "chain", settings, 1)
    ends = [CHAIN_STEPS * (number + 1) for number in range(len(CHAIN))]
    for ranks, end in zip(CHAIN, ends, strict=True):
        _stop(settings, folder / "run", ranks, end)
    begun = [line["step"] for line in read_lines(folder / "run" / STARTS_FILE)[0]]
    if begun != [0, *ends[:-1]]:
        raise RuntimeError(f"{folder}: the starts began at the steps {begun}")
    return compare_chain(read_run(folder / "run"), reference, ends[-1])


def compare_chain(run: RunRecord, reference: RunRecord, end: int) -> Outcome:
    """Compare the sequences of steps, which have to be the same, and losses up to rounding."""
    what, largest = f"ranks {', '.join(map(str, CHAIN))}", 0.0
    for step in range(1, end + 1):
        here, there = run.sequences.get(step), reference.sequences[step]
        if here != there:
            return Outcome(False, f"{what}: step {step} read {here}, and on one rank {there}")
        found, expected = run.figures[step], reference.figures[step]
        if found["lr"] != expected["lr"]:
            return Outcome(False, f"{what}: the learning rate of step {step} is {found['lr']}")
        largest = max(largest, abs(found["loss"] / expected["loss"] - 1))
    read = [sequence for step in range(1, end + 1) for sequence in run.sequences[step]]
    told = f"{len(read)} sequences in the order of one rank, losses within {largest:.0e}"
    return Outcome(largest < _CHAIN_ROUNDING, f"{what}: {told}")


def run(number: int, folder: Path) -> Outcome:
    """Stop and resume a run at the point of a number; the last two are of other kinds."""
    shared = shared_folder(folder)
    try:
        if number < len(POINTS):
            return run_point(POINTS[number], shared, folder)
        return (run_fine_tuning, run_chain)[number - len(POINTS)](shared, folder)
    except (RuntimeError, TimeoutError) as error:
        return Outcome(False, str(error))


RESUMES = Fault(
    name="resumes",
    title="resumes at 12 points, and a run on 1, 2, 4, 2 and 1 ranks",
    bar="loss, gradient norm, learning rate and what was read are equal bit for bit in the 50 "
    "steps after; on other numbers of ranks no sequence is dropped or repeated",
    count=len(POINTS) + 2,
    num_quick=1,
    run=run,
)
