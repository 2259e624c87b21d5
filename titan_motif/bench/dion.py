"""Dion's Newton-Schulz kernels, if the package is installed (https://github.com/microsoft/dion)."""

from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor

IS_INSTALLED = find_spec("dion") is not None


def orthogonalizers() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return Dion's form of five steps, with coefficients of its own; empty if not installed."""
    if not IS_INSTALLED:
        return {}
    from dion.newton_schulz_triton import newton_schulz_triton

    return {"Dion": lambda matrices: newton_schulz_triton(matrices, epsilon=1e-7)}
