"""Where the time of a block goes: its device time, by the operators that asked for it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

_CALLS = 3
_OURS = "titan_motif::"

PARTS: Mapping[str, Callable[[str], bool]] = {
    "products in FP8": lambda op: op == "aten::_scaled_mm",
    "products": lambda op: op in ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention, backward": lambda op: "attention" in op and "backward" in op,
    "attention, forward": lambda op: (
        op == f"{_OURS}differential_attention" or op.startswith("aten::_scaled_dot_product")
    ),
    "PolyNorm and norms": lambda op: op.startswith(
        (f"{_OURS}poly_norm", f"{_OURS}rms_norm", f"{_OURS}add_rms_norm")
    ),
}
"""Part -> whether an operator, by its dispatched name, is of it."""
ELEMENTWISE = "element-wise, sums, casts"
"""All that is in no part: what the compiler has fused, PyTorch's own element-wise kernels."""


def measure_parts(function: Callable[[], Any], device: str) -> dict[str, float]:
    """Return milliseconds of a call by part; on a CPU, of the operators themselves."""
    function()
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        for _ in range(_CALLS):
            function()
        if device == "cuda":
            torch.cuda.synchronize()
    parts = dict.fromkeys([*PARTS, ELEMENTWISE], 0.0)
    for event in recorded.events():
        parts[_part_of(event)] += _microseconds(event, device) / 1000 / _CALLS
    return parts


def _microseconds(event: FunctionEvent, device: str) -> float:
    if event.device_type != torch.autograd.DeviceType.CPU:
        return 0.0  # a kernel, which the operator that launched it names too
    if device == "cuda":
        return sum(kernel.duration for kernel in event.kernels)
    return event.self_cpu_time_total


def _part_of(event: FunctionEvent) -> str:
    """Return the part of the innermost operator around an event that is of one."""
    around: FunctionEvent | None = event
    while around is not None:
        for part, has in PARTS.items():
            if has(around.name):
                return part
        around = around.cpu_parent
    return ELEMENTWISE


def draw_parts(blocks: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Draw a bar for each block, of its parts in milliseconds.

    Args:
        blocks: label of a block -> its parts, as of measure_parts
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.6 * len(blocks)), layout="constrained")
    labels = list(blocks)
    least = 0.02 * max(sum(parts.values()) for parts in blocks.values())
    ends = [0.0] * len(labels)
    for part in (*PARTS, ELEMENTWISE):
        widths = [blocks[label][part] for label in labels]
        bars = axes.barh(labels, widths, left=ends, label=part)
        told = [f"{width:.1f}" if width > least else "" for width in widths]
        axes.bar_label(bars, told, label_type="center", fontsize=8, color="white")
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="ms, forward and backward", title=title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
