"""What a run writes of itself before its first step: its configuration and its environment."""

import dataclasses
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w
import torch

from titan_motif.config import JobConfig
from titan_motif.device import device_module, device_type
from titan_motif.run_folder import ENVIRONMENT, RESOLVED_CONFIG

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
