"""The page of the drill: what was put in, what had to hold, and in how many cases it did."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from titan_motif.components.whole_files import replace_text
from titan_motif.drill.fault import Fault
from titan_motif.drill.ledger import Entry, last_of_each

_NUM_EXAMPLES = 3
_HEAD = """# Reliability

Written by `titan-motif drill`, which puts faults into small real runs of the trainer (into readers
and checks, where there is no run) and looks at what becomes of them. The runs have all that a large
one's state consists of: several sources, ramps of batch and length, ParallelMuon beside AdamW,
saves, an average of saved steps; on CPUs, on one or two ranks, in processes of their own. "Bit for
bit" is every loss, gradient norm and learning rate, every sequence that the model was given, and
all of the last checkpoint.

```sh
titan-motif drill                     # every case that has not been held yet, then this page
titan-motif drill --only kills        # one fault; --count 20 the first cases alone
titan-motif drill --part 0/8          # a part of the cases: eight such commands share the work
titan-motif drill --again             # those too that were held at another commit alone
titan-motif drill --quick             # a few seconds of each, as ./run_tests.sh does; no page
```

A case follows from its number, so that it can be run again;
[ledger.jsonl](reliability/ledger.jsonl) holds what became of each, with the commit.
"""


def write_page(path: Path, faults: Sequence[Fault], entries: Sequence[Entry]) -> None:
    """Write the page from all entries of a ledger."""
    parts = [_HEAD, *_table(faults, entries)]
    for fault in faults:
        parts += _section(fault, [entry for entry in entries if entry.fault == fault.name])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, "\n".join(parts).rstrip() + "\n")


def _table(faults: Sequence[Fault], entries: Sequence[Entry]) -> list[str]:
    lines = ["## Counts", ""]
    lines += ["| fault | held | of | seconds a case |", "| --- | ---: | ---: | ---: |"]
    last = last_of_each(list(entries))
    for fault in faults:
        mine = [entry for (name, _), entry in last.items() if name == fault.name]
        held = sum(entry.is_held for entry in mine)
        mean = f"{sum(e.seconds for e in mine) / len(mine):.1f}" if mine else "-"
        missing = "" if len(mine) >= fault.count else f" ({fault.count} planned)"
        lines.append(f"| [{fault.name}](#{fault.name}) | {held} | {len(mine)}{missing} | {mean} |")
    return [*lines, ""]


def _section(fault: Fault, entries: Sequence[Entry]) -> list[str]:
    last = list(last_of_each(list(entries)).values())
    lines = [
        f"## {fault.name}",
        "",
        f"Put in: {fault.title}.",
        "",
        f"Has to hold: {fault.bar}.",
        "",
    ]
    if not last:
        return [*lines, "Not run yet.", ""]
    held = [entry for entry in last if entry.is_held]
    lines.append(f"Held: {len(held)} of {len(last)}.")
    missed_at = {(e.case, e.commit) for e in entries if not e.is_held}
    mended = {e.case for e in held if any(case == e.case for case, _ in missed_at)}
    unsteady = {e.case for e in held if (e.case, e.commit) in missed_at}
    if mended - unsteady:
        lines.append(f"Of these {len(mended - unsteady)} were not held at an earlier commit.")
    if unsteady:
        lines.append(f"Of these {len(unsteady)} were held only when run again, at the same commit.")
    commits = [f"{name} ({num})" for name, num in Counter(e.commit for e in last).most_common()]
    lines += [f"Commits: {', '.join(commits)}; torch {', '.join(sorted({e.torch for e in last}))}."]
    missed = [entry for entry in last if not entry.is_held]
    if missed:
        lines += ["", "Not held:", "", *(f"- case {e.case}: {_inline(e.told)}" for e in missed)]
    step = max(len(held) // _NUM_EXAMPLES, 1)
    shown = sorted(held, key=lambda entry: entry.case)[::step][:_NUM_EXAMPLES]
    if shown:
        lines += ["", "Such as:", "", *(f"- case {e.case}: {_inline(e.told)}" for e in shown)]
    return [*lines, ""]


def _inline(text: str) -> str:
    """Return a text as Markdown shows it as it is, on one line."""
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{' '.join(text.split())}{pad}{fence}"
