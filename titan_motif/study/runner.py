"""A measurement in a process of its own: whatever happens to it, there is one row to tell.

A module that is run so gets the file for its row as its first argument. It writes the figures, or
{"error": "one line"}; a process that leaves neither is told of here.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from titan_motif.components.foreign_files import read_json
from titan_motif.components.whole_files import replace_text

Row = dict[str, Any]
"""Figures by their names, or `error`: why there are none."""

# A port of 0 is any that is free: with one rank nobody else has to know it.
_ONE_RANK = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "0",
}
_ALLOCATOR = "PYTORCH_ALLOC_CONF", "expandable_segments:True"
"""As run_train.sh has it."""


def run_module(
    module: str,
    arguments: Sequence[str],
    timeout_seconds: float,
    *,
    is_cold: bool = False,
) -> Row:
    """Run `python -m module ROW_FILE arguments` as one rank, and return its row.

    Args:
        is_cold: compile everything anew: nothing that an earlier process compiled is found
    """
    # What is killed below may write a last file into the folder while it is removed.
    with tempfile.TemporaryDirectory(prefix="titan-motif-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        row_file, output_file = folder / "row.json", folder / "output.txt"
        environment = dict([_ALLOCATOR]) | os.environ | _ONE_RANK
        if is_cold:
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
            environment["TRITON_CACHE_DIR"] = str(folder / "triton")
        command = [sys.executable, "-m", module, str(row_file), *arguments]
        code = _run(command, environment, output_file, timeout_seconds)
        if row_file.is_file():  # whatever came after it
            return read_json(row_file, is_record=True)
        if code is None:
            return {"error": f"timed out after {timeout_seconds:g} s"}
        return {"error": _how_it_ended(code, output_file.read_text(errors="replace"))}


def _run(
    command: Sequence[str], environment: dict[str, str], output_file: Path, timeout_seconds: float
) -> int | None:
    """Return a process's exit code, None after the time-out; what it started ends with it."""
    with output_file.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            return process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:  # the compiler's workers outlive it for a while
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _how_it_ended(code: int, output: str) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"ended with exit code {code}: {lines[-1] if lines else 'no output'}"


def split_at_job(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a module's own arguments, and those of the job: what stands behind the first '--'.

    argparse does not do it: it gives a positional list that follows an option nothing.
    """
    own = list(argv)
    split = own.index("--") if "--" in own else len(own)
    return own[:split], own[split + 1 :]


def write_row_of(path: Path, measure: Callable[[], Row]) -> int:
    """Write what a measurement gives, or how it failed; return the process's exit code."""
    try:
        row = measure()
    except Exception as error:
        row = {"error": describe_error(error), "traceback": traceback.format_exc()}
    replace_text(path, json.dumps(row, indent=1) + "\n")
    return 1 if "error" in row else 0


def describe_error(error: BaseException) -> str:
    """Return 'type: message' on one line; the device's memory running out is said in front."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = shorten(f"{type(error).__name__}: {lines[0] if lines else 'no message'}", 300)
    # A compiled kernel's is wrapped in an error of the compiler's.
    is_memory = "OutOfMemory" in type(error).__name__ or "out of memory" in str(error)
    return f"out of memory: {told}" if is_memory else told
