"""How long a function takes, on the device and on the host, and how fast the memory is."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

COPIED_BYTES = 1 << 30
FLUSHED_BYTES = 1 << 28
"""More than any cache holds: written before a timed call, so that its inputs come from memory."""


class Timing(NamedTuple):
    """Medians over many calls."""

    ms: float
    """From the first to the last of the device's work, the host being ahead; on a CPU, the call."""
    host_us: float
    """What the call keeps the host busy: Python, autograd, launches."""


def measure(function: Callable[[], Any], device: str, budget_ms: float = 60.0) -> Timing:
    """Time a function; on a GPU with a cold cache."""
    for _ in range(3):  # compiles, and settles what is chosen on the way
        function()
    host_ms = statistics.median(_host_ms(function, device) for _ in range(5))
    if device == "cpu":
        return Timing(host_ms, 1000 * host_ms)
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)
    flush_ms = statistics.median(_device_ms(flushed.zero_) for _ in range(5))
    # The device flushes while the host launches, so that no gap of the host's is timed.
    num_flushes = 1 + round(1.5 * host_ms / flush_ms)
    first = _device_ms(function, flushed, num_flushes)
    num_calls = min(max(int(budget_ms / first), 5), 100)
    times = [_device_ms(function, flushed, num_flushes) for _ in range(num_calls)]
    return Timing(statistics.median(times), 1000 * host_ms)


def copy_gb_per_second(device: str) -> float:
    """Return the speed of a copy of random data, bytes read and bytes written counted."""
    source = torch.randn((COPIED_BYTES if device == "cuda" else 1 << 26) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure(lambda: target.copy_(source), device).ms / 1e6


def _host_ms(function: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - begin)


def _device_ms(
    function: Callable[[], Any], flushed: Tensor | None = None, num_flushes: int = 0
) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(num_flushes):
        flushed.zero_()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
