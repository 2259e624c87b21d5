"""How long a function takes, and how fast the memory is."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from triton.testing import do_bench

COPIED_BYTES = 1 << 30


def median_ms(function: Callable[[], Any], device: str) -> float:
    """Return the median time of a call, in milliseconds; on a GPU with a cold cache."""
    if device == "cuda":
        return do_bench(function, warmup=10, rep=60, return_mode="median")
    function()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def copy_gb_per_second(device: str) -> float:
    """Return the speed of a copy of random data, bytes read and bytes written counted."""
    source = torch.randn((COPIED_BYTES if device == "cuda" else 1 << 26) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_ms(lambda: target.copy_(source), device) / 1e6
