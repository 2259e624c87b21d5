"""Liger-Kernel's operators, if it is installed (https://github.com/linkedin/Liger-Kernel)."""

from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor

IS_INSTALLED = find_spec("liger_kernel") is not None


def linear_cross_entropy() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return its mean loss of hidden states, weight and labels; None if it is not installed."""
    if not IS_INSTALLED:
        return None
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return lambda hidden, weight, labels: LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, labels
    )[0]


def operators(eps: float) -> dict[str, Callable[..., Tensor | tuple[Tensor, ...]]]:
    """Return its norms under the names of ours; empty if it is not installed.

    Its PolyNorm has no form that multiplies: there a product of PyTorch's follows. Nothing is done
    in place, since the benchmark calls a backward pass many times.
    """
    if not IS_INSTALLED:
        return {}
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.poly_norm import LigerPolyNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    def poly_norm(x, weight, bias):
        # Its bias has no dimension.
        return LigerPolyNormFunction.apply(x, weight, bias.squeeze(), eps, False)

    return {
        "poly_norm": poly_norm,
        "poly_norm_mul": lambda x, up, weight, bias: poly_norm(x, weight, bias) * up,
        "rms_norm": lambda x, weight: LigerRMSNormFunction.apply(
            x, weight, eps, 0.0, "gemma", False
        ),
        "add_rms_norm": lambda x, residual, weight: LigerFusedAddRMSNormFunction.apply(
            x, residual, weight, eps, 0.0, "gemma", False
        ),
    }
