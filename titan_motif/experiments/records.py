"""What a training run has recorded, thinned to what a page shows."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titan_motif.components.foreign_files import read_json
from titan_motif.components.history import read_history
from titan_motif.run_folder import SUMMARY

MAX_POINTS = 60
"""Of a curve that is kept."""

Curve = dict[str, list[float]]
"""`step`, and values beside it by name."""


def read_cell_run(folder: Path) -> dict[str, Any]:
    """Return a finished run's summary, and its curves of losses."""
    history = read_history(folder)
    summary = read_json(folder / SUMMARY, is_record=True)
    rates = [entry["tokens_per_second"] for entry in history if "tokens_per_second" in entry]
    kept = ("step", "tokens_seen", "validation_loss", "validation_losses")
    return {
        **{name: summary[name] for name in kept},
        "tokens_per_second": statistics.median(rates),  # the first of them has compiled
        "training_curve": thin(_curve(history, ["loss", "grad_norm"])),
        "validation_curve": _curve(
            history,
            [
                "validation_loss",
                *(f"validation_loss/{group}" for group in summary["validation_losses"]),
            ],
        ),
    }


def read_by_layer(folder: Path, names: Sequence[str]) -> dict[str, Curve]:
    """Return curves of a value in each layer, from the run's TensorBoard events.

    Args:
        names: of TensorBoard's tags before /layer_N, such as attention_lambda
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, Curve] = {name: {} for name in names}
    for events in sorted((folder / "tb").rglob("events.out.*")):
        accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            name, _, layer = tag.partition("/")
            if name in found and layer.startswith("layer_"):
                points = accumulator.Scalars(tag)
                found[name]["step"] = [point.step for point in points]
                found[name][layer] = [point.value for point in points]
    return {name: thin(curve) for name, curve in found.items() if curve}


def _curve(history: Sequence[dict[str, float]], names: Sequence[str]) -> Curve:
    entries = [entry for entry in history if names[0] in entry]
    curve: Curve = {"step": [entry["step"] for entry in entries]}
    for name in names:
        curve[name] = [round(entry[name], 5) for entry in entries if name in entry]
    return curve


def thin(curve: Curve) -> Curve:
    """Return at most MAX_POINTS points of a curve, spaced evenly, the first and last among them."""
    num = len(curve["step"])
    if num <= MAX_POINTS:
        chosen = list(range(num))
    else:
        chosen = [round(i * (num - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]
    return {name: [_short(values[i]) for i in chosen] for name, values in curve.items()}


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")
