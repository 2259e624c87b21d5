"""What a run leaves beside its checkpoints: its configuration and environment, and a summary."""

import dataclasses
import json
import math
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torchtitan.tools.logging import logger

from titan_motif.components.history import read_history
from titan_motif.config import JobConfig
from titan_motif.device import device_module, device_type
from titan_motif.evaluation.bigram import MAX_TRAIN_TOKENS
from titan_motif.run_folder import (
    ENVIRONMENT,
    EVALUATIONS,
    LOSS_CURVE,
    RESOLVED_CONFIG,
    SUMMARY,
)

_PACKAGES = ("titan-motif", "torch", "torchtitan", "torchao", "torchdata", "triton", "tokenizers")


def write_start_records(config: JobConfig, world_size: int) -> dict[str, Any]:
    """Write config.resolved.toml and environment.json into the run's folder; rank 0 calls it.

    Returns the environment.
    """
    folder = Path(config.job.dump_folder)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = tomli_w.dumps(_without_none(dataclasses.asdict(config)))
    (folder / RESOLVED_CONFIG).write_text(resolved)
    environment = describe_environment(world_size)
    (folder / ENVIRONMENT).write_text(json.dumps(environment, indent=2) + "\n")
    return environment


def describe_environment(world_size: int) -> dict[str, Any]:
    """Return versions, hardware and the commit of the source, as far as they can be known.

    $TITAN_MOTIF_COMMIT, if it is set, names the commit: an image has no repository.
    """
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = device_module.current_device()
    told_commit = os.environ.get("TITAN_MOTIF_COMMIT")
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device_type": device_type,
        "device_name": device_module.get_device_name(torch.device(device_type, device)),
        "world_size": world_size,
        "torch_threads": torch.get_num_threads(),
        "git_commit": told_commit or _git("rev-parse", "HEAD"),
        "git_has_changes": not told_commit and bool(_git("status", "--porcelain")),
    }


def write_summary(config: JobConfig, summary: dict[str, Any], samples: list[str]) -> None:
    """Write summary.json and loss.png into the run's folder, and print both; rank 0 calls it."""
    folder = Path(config.job.dump_folder)
    curve = folder / LOSS_CURVE
    draw_loss_curve(config, summary, curve)
    content = {**summary, "samples": samples, "files": run_files(config, curve)}
    (folder / SUMMARY).write_text(json.dumps(content, indent=2) + "\n")
    for line in summary_lines(content):
        logger.info(line)
    logger.info(f"  {'as a page':<16} titan-motif report {folder}")


def run_files(config: JobConfig, curve: Path) -> dict[str, str]:
    """Return where everything of a run lies."""
    folder = Path(config.job.dump_folder)
    files = {
        "summary": folder / SUMMARY,
        "loss_curve": curve,
        "config": folder / RESOLVED_CONFIG,
        "environment": folder / ENVIRONMENT,
    }
    if config.metrics.enable_tensorboard:
        files["tensorboard"] = folder / config.metrics.save_tb_folder
    if config.evaluation.enable:
        files["evaluation"] = folder / EVALUATIONS
    if config.checkpoint.enable:
        files["checkpoints"] = folder / config.checkpoint.folder
    return {name: str(path) for name, path in files.items()}


def summary_lines(content: dict[str, Any]) -> list[str]:
    """Return the summary as a person reads it."""

    def nats(key: str) -> str:
        return "-" if content[key] is None else f"{content[key]:.4f} nats/token"

    lines = [
        f"run finished at step {content['step']}, {content['tokens_seen']:,} tokens seen",
        f"  train loss       {nats('train_loss')} (the last tenth)",
        f"  validation loss  {nats('validation_loss')}",
    ]
    if content["bits_per_byte"] is not None:
        lines.append(f"  bits per byte    {content['bits_per_byte']:.4f} (validation)")
    if content["bigram_validation_loss"] is not None:
        gap = content["bigram_validation_loss"] - content["validation_loss"]
        side = "under" if gap >= 0 else "over"
        bigram, counted = nats("bigram_validation_loss"), content["bigram_train_tokens"]
        if counted == MAX_TRAIN_TOKENS:
            bigram += f" ({counted:,} tokens counted)"
        lines.append(f"  bigram model     {bigram}: the run is {abs(gap):.4f} {side} it")
    for sample in content["samples"]:
        lines.append(f"  sample           {sample!r}")
    lines += [f"  {name:<16} {path}" for name, path in content["files"].items()]
    return lines


def bits_per_byte(loss: float, labels: np.ndarray, token_bytes: np.ndarray) -> float:
    """Turn a mean loss in nats per token of `labels` into bits per byte of their text."""
    return loss * labels.size / math.log(2) / int(token_bytes[labels].sum())


def draw_loss_curve(config: JobConfig, summary: dict[str, Any], path: Path) -> None:
    """Draw training and validation loss over steps, with the bigram model's as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    history = read_history(config.job.dump_folder)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for key, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else ""
            )
    if summary["bigram_validation_loss"] is not None:
        axes.axhline(summary["bigram_validation_loss"], ls="--", c="gray", label="bigram model")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=config.job.description)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _git(*arguments: str) -> str | None:
    """Return a git command's output about the source tree; None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()


def _without_none(value: Any) -> Any:
    """TOML has no null: a field that is None is left out."""
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return value
