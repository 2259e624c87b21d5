"""`titan-motif bench block`: one block's forward and backward pass, and where its time goes.

Each variant is a process of its own (titan_motif.bench.block_cell).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from rich.console import Console
from rich.table import Table

from titan_motif.bench.block_cell import VARIANTS
from titan_motif.bench.block_parts import draw_parts
from titan_motif.bench.frame import print_table
from titan_motif.components.whole_files import replace_text
from titan_motif.study.runner import Row, run_module
from titan_motif.study.workload import choose_workload


@dataclass
class Options:
    """Measure one compiled block: in plain PyTorch, with our kernels, and with them in FP8.

    Example: titan-motif bench block --json block.json --png block.png
    """

    flavor: str = ""
    """Whose block; none means 12_7b on a GPU, debug on a CPU."""
    seq_len: int | None = None
    """Tokens of a sequence; none means 4096 on a GPU, 128 on a CPU."""
    batch: int | None = None
    """Sequences; none means 4 on a GPU, 2 on a CPU."""
    recipe: Literal["rowwise_with_gw_hp", "rowwise", "tensorwise"] = "rowwise_with_gw_hp"
    """Of FP8."""
    emulate: bool = False
    """Compute FP8 on any device, rounded as FP8 is; times then mean nothing."""
    timeout: float = 300.0
    """Seconds that a variant may take."""
    json: Path | None = None
    """Write all figures to this file."""
    png: Path | None = None
    """Draw what the time goes into to this file."""


def main(options: Options) -> None:
    """Time a block's parts, and print, draw and write what they take."""
    workload = choose_workload(options.flavor, None, options.seq_len, options.batch)
    sizes = {"flavor": workload.flavor, "batch": workload.batch, "seq_len": workload.seq_len}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    arguments += [f"--recipe={options.recipe}", *(["--emulate"] if options.emulate else [])]
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    rows: dict[str, Row] = {}
    for variant in VARIANTS:
        with console.status(variant):
            rows[variant] = run_module(
                "titan_motif.bench.block_cell",
                [*arguments, f"--variant={variant}"],
                options.timeout,
            )
        if "error" in rows[variant]:
            console.print(f"not measured: {variant}: {rows[variant]['error']}")
    if options.json is not None:
        content = sizes | {"recipe": options.recipe, "rows": rows}
        replace_text(options.json, json.dumps(content, indent=1) + "\n")
    blocks = {variant: row for variant, row in rows.items() if "error" not in row}
    if not blocks:
        raise ValueError("no variant ran")
    device = next(iter(blocks.values()))["device"]
    title = f"{device}: a block of {workload.flavor}, {workload.batch} x {workload.seq_len} tokens"
    print(title)
    print_table(_table(blocks), 140)
    if options.png is not None:
        parts = {variant: row["parts_ms"] for variant, row in blocks.items()}
        draw_parts(parts, title, options.png)


def _table(blocks: dict[str, Row]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("forward and backward, ms", no_wrap=True)
    for variant in blocks:
        table.add_column(variant, justify="right")
    rows = list(blocks.values())
    for part in rows[0]["parts_ms"]:
        table.add_row(part, *(f"{row['parts_ms'][part]:.2f}" for row in rows))
    table.add_row("whole, by itself", *(f"{row['block_ms']:.2f}" for row in rows))
    table.add_row("TFLOPS", *(f"{row['tflops']:.4g}" for row in rows))
    return table
