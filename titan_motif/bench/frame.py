"""What stands around every benchmark's figures: the table's width, the file's head."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from titan_motif.study.machine import device_name


def print_table(table: Table, width: int) -> None:
    """Print a table as wide as the terminal; into a file or a pipe, as wide as is said."""
    Console(width=width if not sys.stdout.isatty() else None).print(table)


def write_figures(path: Path | None, device: str, results: Iterable[Any], **more: Any) -> None:
    """Write what was measured to a file, if one is named.

    Args:
        results: dataclasses, a line of the table each
        more:    what they have in common, beside the device
    """
    if path is None:
        return
    content = {"device": device_name(device), "torch": torch.__version__, **more}
    content["results"] = [asdict(line) for line in results]
    path.write_text(json.dumps(content, indent=1) + "\n")
