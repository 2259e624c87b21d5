"""`titan-motif drill`: put faults into small runs, and count what holds."""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from titan_motif.drill.configs import CONFIGS
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.hostile import HOSTILE
from titan_motif.drill.kills import KILLS
from titan_motif.drill.ledger import Entry, Ledger, last_of_each
from titan_motif.drill.mutations import MUTATIONS
from titan_motif.drill.numbers import NUMBERS
from titan_motif.drill.page import write_page
from titan_motif.drill.resumes import RESUMES
from titan_motif.drill.stalls import FULL_DISK, STALLS, can_mount
from titan_motif.drill.stops import STOPS
from titan_motif.run_records import describe_environment

FAULTS = {
    fault.name: fault
    for fault in (KILLS, RESUMES, MUTATIONS, NUMBERS, STOPS, *STALLS, FULL_DISK, CONFIGS, HOSTILE)
}
NEEDS_ROOT = {FULL_DISK.name}
"""They mount a file system."""


@dataclass
class Options:
    """Put faults into small real runs, and write docs/reliability.md of what became of them.

    A case that was held is not run again; those that were not are. --quick keeps nothing.

    Example: titan-motif drill --only kills stops --count 20
    """

    only: tuple[Literal[*FAULTS], ...] = ()
    """Some faults alone."""
    count: int | None = None
    """The first cases of each fault; none means all."""
    part: str = "0/1"
    """I/N: of N commands that share the cases, this is number I, from 0."""
    quick: bool = False
    """A few cases of each fault, in seconds; nothing is kept or written."""
    again: bool = False
    """Run cases too that were held at another commit alone."""
    time_limit: float | None = None
    """Seconds after which no other case is begun."""
    output: Path = Path("docs")
    """Folder of reliability.md, and of reliability/ledger.jsonl."""
    work: Path = Path("outputs/drill")
    """Folder of the runs; what is left of a case that was held is removed."""


def main(options: Options) -> None:
    """Run the cases that are due, and write the page.

    Raises: ValueError, one line, for a wrong option, and if a case was not held
    """
    faults = [fault for fault in FAULTS.values() if fault.name in (options.only or FAULTS)]
    if options.count is not None and options.count < 1:
        raise ValueError(f"--count is {options.count}; at least 1 is needed")
    if options.quick:
        _quick(faults)
        return
    index, parts = _part(options.part)
    ledger = Ledger(options.output / "reliability" / "ledger.jsonl")
    done = last_of_each(ledger.entries())
    environment = describe_environment(1)
    commit = (environment["git_commit"] or "unknown")[:10] + "+" * environment["git_has_changes"]
    held = {
        key
        for key, entry in done.items()
        if entry.is_held and not (options.again and entry.commit != commit)
    }
    due = [
        (fault, case)
        for fault, case in _cases(faults, options.count)
        if case % parts == index and (fault.name, case) not in held
    ]
    begin, missed = time.perf_counter(), []
    for number, (fault, case) in enumerate(due, start=1):
        if options.time_limit is not None and time.perf_counter() - begin > options.time_limit:
            print(f"{len(due) - number + 1} cases are left for another call")
            break
        outcome, seconds = run_case(fault, case, options.work)
        told = (fault.name, case, outcome.is_held, outcome.told, round(seconds, 2))
        ledger.add(
            Entry(*told, commit, environment["versions"]["torch"], environment["cpu_count"] or 0)
        )
        missed += [] if outcome.is_held else [f"{fault.name} {case}"]
        print(f"{number}/{len(due)}  {_told(fault, case, outcome, seconds)}", flush=True)
    page = options.output / "reliability.md"
    write_page(page, list(FAULTS.values()), ledger.entries())
    print(f"ledger: {ledger.path}\npage: {page}")
    _check(missed)


def run_case(fault: Fault, case: int, work: Path) -> tuple[Outcome, float]:
    """Run a case in a folder of its own, beside what all cases share; also return its seconds."""
    folder = work.absolute() / f"{fault.name}-{case}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begin = time.perf_counter()
    try:
        outcome = fault.run(case, folder)
    except Exception as error:
        outcome = Outcome(False, f"the drill failed: {type(error).__name__}: {error}")
    if outcome.is_held:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome._replace(told=" ".join(outcome.told.split())), time.perf_counter() - begin


def _quick(faults: Sequence[Fault]) -> None:
    """Run a few cases of each fault in a folder that is removed."""
    missed, counts = [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for fault in (fault for fault in faults if fault.num_quick):
            for case in range(fault.num_quick):
                outcome, seconds = run_case(fault, case, Path(folder))
                counts[fault.name] += outcome.is_held
                if not outcome.is_held:
                    missed.append(f"{fault.name} {case}")
                    print(_told(fault, case, outcome, seconds), flush=True)
            print(f"{fault.name}: {counts[fault.name]} of {fault.num_quick} held", flush=True)
    _check(missed)


def _cases(faults: Sequence[Fault], count: int | None) -> Iterator[tuple[Fault, int]]:
    for fault in faults:
        if fault.name in NEEDS_ROOT and not can_mount():
            print(f"{fault.name}: left out, since mounting a file system needs root")
            continue
        for case in range(fault.count if count is None else min(count, fault.count)):
            yield fault, case


def _part(words: str) -> tuple[int, int]:
    index, _, parts = words.partition("/")
    if not (index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise ValueError(f"--part is {words!r}; I/N is needed, I from 0 and less than N")
    return int(index), int(parts)


def _told(fault: Fault, case: int, outcome: Outcome, seconds: float) -> str:
    held = "held" if outcome.is_held else "NOT HELD"
    return f"{fault.name} {case}  {held}  {outcome.told}  ({seconds:.1f} s)"


def _check(missed: Sequence[str]) -> None:
    if missed:
        more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
        raise ValueError(f"{len(missed)} cases were not held: {', '.join(missed[:5])}{more}")
