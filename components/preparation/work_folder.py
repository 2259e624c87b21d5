"""Where a preparation keeps its work, so that it can go on after a kill.

WORK/lock       held by the process at work; a kill lets it go
WORK/plan.json  what the units are made of
WORK/units/     the units done (`tokenize_units.py`)
WORK/new/       the source that is being assembled, moved into place at the end
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tokenizers

from titan_motif.components.preparation.inputs import Input
from titan_motif.components.preparation.tokenize_units import Job


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Make the work folder and keep other commands out of it, as long as this process lives.

    Raises: ValueError if another process is at work there, or if something else lies there
    """
    lock = work / "lock"
    if work.exists() and not lock.is_file() and (not work.is_dir() or any(work.iterdir())):
        raise ValueError(f"{work}: holds something else, where the work was to be kept; move it")
    work.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{work}: in use by another command (process {file.read().strip()}); wait for its "
                "end, or stop it"
            ) from None
        # The other may have come to its end, its folder with it, since this one opened the file.
        if not lock.is_file() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise ValueError(f"{work}: another command has just ended; start again")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def take_up(job: Job, inputs: Sequence[Input], num_units: int, unit_bytes: int) -> bool:
    """Keep the units of an earlier start if they were made of the same; return False if not so.

    Seed, split and duplicates do not matter here: they come after the units.
    """
    plan = {
        "tokenizer": job.tokenizer_sha256,
        "tokenizers": tokenizers.__version__,
        "text_field": job.text_field,
        "licence_field": job.licence_field,
        "inputs": inputs,
        "num_units": num_units,
        "unit_bytes": unit_bytes,
    }
    content = json.dumps(plan)
    file, units = job.work / "plan.json", job.work / "units"
    shutil.rmtree(job.work / "new", ignore_errors=True)
    found = file.read_text() if file.is_file() else None
    if found == content:
        return True
    file.unlink(missing_ok=True)
    shutil.rmtree(units, ignore_errors=True)
    units.mkdir()
    file.write_text(content)
    return found is None
