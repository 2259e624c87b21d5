"""What lies where in a run's folder (job.dump_folder), by name.

Its history and its starts are files of components/history.py; checkpoints and TensorBoard's events
lie where the job says.
"""

from pathlib import Path

RESOLVED_CONFIG = "config.resolved.toml"
ENVIRONMENT = "environment.json"
SUMMARY = "summary.json"
LOSS_CURVE = "loss.png"
EVALUATIONS = "evaluation"
REPORT = "report.html"
PREEMPTED = "preempted.json"
STALLS = "stalls"


def resolved_config_of(step: str | Path) -> Path | None:
    """Return the job of a step's run: the file two folders above it, or None if none is there."""
    resolved = Path(step).absolute().parent.parent / RESOLVED_CONFIG
    return resolved if resolved.is_file() else None
