"""`titan-motif report`: a page of a run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from titan_motif.report.facts import told_bytes
from titan_motif.report.page import render
from titan_motif.report.record import read_run
from titan_motif.run_folder import REPORT


@dataclass(frozen=True)
class Options:
    """Write one HTML file that shows a run: curves, samples, checkpoints, settings, environment.

    It needs no network and no other file. A run that is still going, or that died, has one too.

    Example: titan-motif report outputs/debug
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder (job.dump_folder)."""
    output: Path | None = None
    """The file to write; without it, report.html in the run's folder."""


def main(options: Options) -> None:
    """Write a run's page."""
    run = read_run(options.run)
    output = options.output or options.run / REPORT
    if output.is_dir():
        raise ValueError(f"--output is {output}; that is a folder, and a file is needed")
    if not output.parent.is_dir():
        raise ValueError(f"--output is {output}; the folder {output.parent} does not exist")
    page = render(run).encode()
    replacement = output.with_name(f"{output.name}.new")  # a reader sees the old page or the new
    replacement.write_bytes(page)
    os.replace(replacement, output)
    print(f"report: {output} ({told_bytes(len(page))})")
