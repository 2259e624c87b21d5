"""`titan-motif data preview`: mixture, length, batch and learning rate of a run to come."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import numpy as np
from rich.console import Console
from rich.table import Table

from titan_motif.components.curriculum.schedule import RunPlan
from titan_motif.components.lr_schedule import WarmupStableDecay, build_schedule
from titan_motif.config import JobConfig
from titan_motif.config_loading import load_config
from titan_motif.curriculum import build_loader, sources_of

NUM_POINTS = 400
"""Steps that the picture is drawn from; the table has the beginning and the end of each phase."""


@dataclass
class Options:
    """Show what a run will read when, as a table and a picture.

    Example: titan-motif data preview --config train_configs/motif2_12_7b.toml --png preview.png
    """

    config: Path
    """The job's TOML file; its data need not be there, but without them no epochs are told."""
    ranks: int = 8
    """Processes, where the job's batch depends on them."""
    override: tuple[str, ...] = ()
    """Settings that differ from the file's: section.field=value."""
    png: Path = Path("preview.png")
    """The picture."""
    json: Path | None = None
    """Write the points of the picture to this file."""


def main(options: Options) -> None:
    """Print, and draw if asked, what a job will read when."""
    if options.ranks < 1:
        raise ValueError(f"--ranks is {options.ranks}; at least 1 is needed")
    arguments = [f"--{override}" for override in options.override]
    command = ["--job.config_file", str(options.config), *arguments]
    config = load_config(command, options.ranks, runs_here=False)
    plan = config.lr_scheduler.plan
    schedule = build_schedule(
        training_steps=config.training.steps,
        tokens_at=plan.tokens_at,
        **asdict(config.lr_scheduler),
    )
    points = [
        _point(config, plan, schedule, step)
        for step in np.unique(np.linspace(0, plan.num_steps - 1, NUM_POINTS).astype(int)).tolist()
    ]
    edges = sorted({*plan.phase_steps[:-1], *(step - 1 for step in plan.phase_steps[1:])})
    console = Console(width=160)
    print(f"{plan.num_steps:,} steps, {plan.total_tokens:,} tokens")
    console.print(_table([_point(config, plan, schedule, step) for step in edges]))
    epochs = _epochs(config, options.ranks)
    if epochs is not None:
        console.print(epochs)
    draw(points, options.png)
    print(f"picture: {options.png}")
    if options.json is not None:
        options.json.write_text(json.dumps({"points": points}, indent=1) + "\n")


def _point(
    config: JobConfig, plan: RunPlan, schedule: WarmupStableDecay, index: int
) -> dict[str, Any]:
    step = plan.step(index)
    factor = schedule.factor(step.tokens_before, step.tokens_before + step.tokens)
    return {
        "step": index + 1,
        "phase": plan.phases[step.phase].name,
        "tokens": step.tokens_before + step.tokens,
        "seq_len": step.seq_len,
        "batch_tokens": step.tokens,
        "lr": config.optimizer.lr * factor,
        "weights": plan.weights(index),
    }


def _table(points: list[dict[str, Any]]) -> Table:
    groups = list(dict.fromkeys(group for point in points for group in point["weights"]))
    table = Table(box=None, header_style="bold")
    table.add_column("phase")
    for heading in ("step", "tokens", "length", "batch tokens", "learning rate", *groups):
        table.add_column(heading, justify="right")
    for point in points:
        table.add_row(
            point["phase"],
            f"{point['step']:,}",
            f"{point['tokens']:,}",
            f"{point['seq_len']:,}",
            f"{point['batch_tokens']:,}",
            f"{point['lr']:.3g}",
            *(f"{point['weights'].get(group, 0.0):.3f}" for group in groups),
        )
    return table


def _epochs(config: JobConfig, ranks: int) -> Table | None:
    """Return how often each source will be read; None where the data are not there."""
    if not all((source.folder / "train" / "tokens.npy").is_file() for source in sources_of(config)):
        print("the data are not there yet: how often each source will be read is not known")
        return None
    loader = build_loader(config, 0, ranks)
    table = Table(box=None, header_style="bold")
    for heading in ("source", "group"):
        table.add_column(heading)
    for heading in ("tokens", "to be read", "epochs"):
        table.add_column(heading, justify="right")
    epochs = loader.epochs(config.training.steps)
    for stream, group in zip(loader.streams, loader.order.groups, strict=True):
        read = epochs[stream.name] * stream.epoch_tokens
        figures = f"{len(stream.file):,}", f"{read:,.0f}", f"{epochs[stream.name]:.2f}"
        table.add_row(stream.name, group, *figures)
    return table


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Draw shares, length, batch and learning rate over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tokens = [point["tokens"] for point in points]
    groups = list(dict.fromkeys(group for point in points for group in point["weights"]))
    figure, axes = pyplot.subplots(
        4, figsize=(9, 9), sharex=True, layout="constrained", height_ratios=(3, 1, 1, 1)
    )
    shares = [[point["weights"].get(group, 0.0) for point in points] for group in groups]
    axes[0].stackplot(tokens, shares, labels=groups)
    axes[0].set(ylabel="share", ylim=(0, 1))
    axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    for row, key, label in (
        (1, "seq_len", "sequence length"),
        (2, "batch_tokens", "batch (tokens)"),
        (3, "lr", "learning rate"),
    ):
        axes[row].plot(tokens, [point[key] for point in points])
        axes[row].set(ylabel=label, ylim=(0, None))
        axes[row].grid(alpha=0.3)
    axes[3].set(xlabel="tokens")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
