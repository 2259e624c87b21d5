"""Runs in which a rank stands still, or lacks what it needs: they end, with a sentence."""

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from titan_motif.components.watchdog import most_seconds
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.kills import reference_run, whole_steps
from titan_motif.drill.rank import STRUCK
from titan_motif.drill.run_record import STARTS, first_difference, read_run
from titan_motif.drill.runs import last_line, start
from titan_motif.drill.small_job import shared_folder, small_job
from titan_motif.run_folder import STALLS as STALLS_FOLDER

STALL_SECONDS, SLOW_SECONDS = 5, 15
"""What the job allows a step, and what takes longer: three times that, as by default."""
_BUSY_SECONDS = 8
"""By which a machine with more to do than this is late."""
SENTENCE_SECONDS = most_seconds(STALL_SECONDS, STALL_SECONDS) + _BUSY_SECONDS
"""From the fault to the sentence."""
LIMIT_SECONDS = SENTENCE_SECONDS + 30 + _BUSY_SECONDS
"""From the fault to the end of the run: torchrun waits for ranks that hang for 30 s."""
_FULL_DISK_SECONDS = 60
_SECONDS = 180
_LAST_STEP = 14


class Kind(NamedTuple):
    """A fault of one rank."""

    name: str
    title: str
    words: tuple[str, ...]
    """Of titan_motif.drill.rank_faults, by turns."""
    told: str
    """What the sentence has, of rank and step."""
    settings: tuple[str, ...] = ()
    frame: str | None = None
    """What stacks have to show."""
    has_own_stacks: bool = False
    """Whether the rank writes its own, and not the other one alone."""


KINDS = (
    Kind(
        "hanging-read",
        "reading data hangs on one of 2 ranks",
        ("read",),
        "rank {rank} made no",
        frame="in never",
        has_own_stacks=True,
    ),
    Kind(
        "stuck-rank",
        "the process of one of 2 ranks is stopped, or its interpreter is held in a call of C",
        ("stopped", "held"),
        "nothing is heard of rank {rank}: ",
        frame="File ",
    ),
    Kind(
        "killed-worker",
        "a worker of one of 2 ranks' data loaders is killed",
        ("worker",),
        "on rank {rank}, which reads",
        ("--training.dataloader.num_workers=2",),
    ),
    Kind("end-of-data", "one of 2 ranks has no data left", ("data",), "rank {rank} has no data"),
)


def run_stall(kind: Kind, number: int, folder: Path) -> Outcome:
    """Put a fault into a rank, through the product's launcher, and see how the run ends."""
    draw = random.Random(number)
    rank, step = number % 2, draw.randint(2, _LAST_STEP)
    job = small_job(shared_folder(folder))
    settings = [f"--job.config_file={job}", f"--watchdog.stall_seconds={STALL_SECONDS}"]
    settings += [f"--watchdog.slow_seconds={SLOW_SECONDS}", *kind.settings]
    word = kind.words[number // 2 % len(kind.words)]
    told = f"{word}, step {step}, rank {rank}"
    run_folder, fault = folder / "run", f"{word} {step} {rank}"
    try:
        with start(settings, run_folder, 2, launches=True, fault=fault) as run:
            struck = run_folder / STARTS / f"001-{rank}{STRUCK}"
            run.until(struck.exists, _SECONDS)
            begin = time.monotonic()
            run.until(lambda: "\nerror: " in run.log() or run.is_over, _SECONDS)
            told_after = time.monotonic() - begin
            codes = run.wait(_SECONDS)
            seconds, log = time.monotonic() - begin, run.log()
    except (TimeoutError, RuntimeError) as error:
        return Outcome(False, f"{told}: {error}")
    sentences = [line for line in log.splitlines() if line.startswith("error: ")]
    words = kind.told.format(rank=rank)
    if codes != [1]:
        return Outcome(False, f"{told}: ended with {codes}: {last_line(log)}")
    if told_after > SENTENCE_SECONDS or seconds > LIMIT_SECONDS:
        return Outcome(False, f"{told}: told after {told_after:.1f} s, took {seconds:.1f} s")
    if len(sentences) != 1 or words not in sentences[0]:
        return Outcome(False, f"{told}: said {sentences or last_line(log)}")
    if kind.frame:
        stacks = (
            run_folder / STALLS_FOLDER / f"rank_{rank if kind.has_own_stacks else 1 - rank}.txt"
        )
        if str(stacks.parent) not in sentences[0] or kind.frame not in stacks.read_text():
            return Outcome(False, f"{told}: {stacks} has no {kind.frame!r}: {sentences[0]}")
    when = f"told after {told_after:.1f} s, over after {seconds:.1f} s"
    return Outcome(True, f"{told}: {when}: {sentences[0]}")


def run_full_disk(number: int, folder: Path) -> Outcome:
    """Let a run's file system have too little room, then enough."""
    draw = random.Random(number)
    kilobytes, num_ranks = draw.randint(100, 1400), 1 + number % 2
    shared = shared_folder(folder)
    job, reference = small_job(shared), reference_run(shared, num_ranks)
    mode = ("disabled", "async")[number // 2 % 2]
    settings = [f"--job.config_file={job}", f"--checkpoint.async_mode={mode}"]
    settings += ["--metrics.enable_tensorboard=true"]  # it writes in a thread of its own
    told = f"{kilobytes} kB, {mode}, {num_ranks} rank{'s' if num_ranks > 1 else ''}"
    with _file_system(folder / "disk", kilobytes) as disk:
        (disk / "run").mkdir()
        (disk / "run" / STARTS).symlink_to(folder.absolute())  # the log has room
        try:
            with start(settings, disk / "run", num_ranks) as run:
                codes, seconds = run.wait(_SECONDS), time.monotonic() - run.begun
                log = run.log()
            before = whole_steps(disk / "run" / "checkpoint")
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            with start(settings, disk / "run", num_ranks) as run:
                again = run.wait(_SECONDS)
                last = run.log()
        except TimeoutError as error:
            return Outcome(False, f"{told}: {error}")
        sentences = [line for line in log.splitlines() if line.startswith("error: ")]
        newest = before[0] if before else 0
        says = f"continuing from step {newest} " if newest else "starting from the first step"
        if 0 in codes or seconds > _FULL_DISK_SECONDS:
            return Outcome(False, f"{told}: ended with {codes} after {seconds:.1f} s")
        # Of two ranks the other one may say, with its stack, that it lost the first.
        has_stack = any(line.startswith("OSError") for line in log.splitlines())
        if len(sentences) != 1 or has_stack or (num_ranks == 1 and "Traceback" in log):
            return Outcome(False, f"{told}: said {sentences or last_line(log)}")
        if any(again) or says not in last:
            return Outcome(False, f"{told}: with room, from {newest}: {again}, {last_line(last)}")
        missed = first_difference(read_run(disk / "run"), reference)
        return Outcome(missed is None, f"{told}: {missed or sentences[0]}")


@contextlib.contextmanager
def _file_system(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a small file system in memory; only root can."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder],
        check=True,
        capture_output=True,
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def can_mount() -> bool:
    """Return whether this process may mount a file system."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


_SENTENCE = "one sentence that says what and where"
BAR = (
    f"{_SENTENCE}, within {SENTENCE_SECONDS:g} s of the fault (the job allows a step "
    f"{STALL_SECONDS} s), and an exit code that is not 0, within {LIMIT_SECONDS:g} s (torchrun "
    "waits 30 s for ranks that hang)"
)
STALLS = tuple(
    Fault(kind.name, kind.title, BAR, count=10, num_quick=0, run=partial(run_stall, kind))
    for kind in KINDS
)
FULL_DISK = Fault(
    "full-disk",
    "the file system of the run has no room: sync and async saves, 1 and 2 ranks",
    f"{_SENTENCE}, no stack of the full disk, and an exit code that is not 0, within "
    f"{_FULL_DISK_SECONDS} s; with room again the run goes on from the newest whole step and ends "
    "bit for bit like one that nobody disturbed",
    count=10,
    num_quick=0,
    run=run_full_disk,
)
