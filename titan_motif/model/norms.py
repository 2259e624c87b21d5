"""The norms of a block, as modules around the operators."""

import torch
from torch import Tensor, nn

from titan_motif.components import operators
from titan_motif.kernels import Implementation


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, with a weight."""

    def __init__(self, width: int, eps: float, kernels: Implementation) -> None:
        super().__init__()
        self.eps, self.kernels = eps, kernels
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (..., width) -> (..., width)."""
        return operators.rms_norm(x, self.weight, self.eps, self.kernels)


class ScaledRMSNorm(RMSNorm):
    """RMSNorm times a scalar that is handed in: taken into the weight, it costs no pass over x."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Shapes: x (..., width), scale () -> (..., width)."""
        wide = torch.promote_types(self.weight.dtype, scale.dtype)
        return operators.rms_norm(x, self.weight.to(wide) * scale, self.eps, self.kernels)


class AddRMSNorm(RMSNorm):
    """RMSNorm of a sum, which is the residual stream from here on: (norm, sum) in one pass."""

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: x, residual (..., width) -> (..., width) twice: the norm, and the sum."""
        return operators.add_rms_norm(x, residual, self.weight, self.eps, self.kernels)
