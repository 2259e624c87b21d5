"""Numbers that look random and are computed from an index: the same on every machine."""

from typing import TypeVar

import numpy as np

Bits = TypeVar("Bits", int, np.ndarray)

_64_BITS = (1 << 64) - 1


def mix(x: Bits) -> Bits:
    """Return SplitMix64 of a number, or of an array of uint64 (Steele, Lea, Flood 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _64_BITS
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _64_BITS
    return x ^ (x >> 31)
