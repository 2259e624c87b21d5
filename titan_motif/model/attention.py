"""Self-attention of a block: projections, rotary positions, the differential maps, head norm."""

import torch
from torch import Tensor, nn

from titan_motif import kernels
from titan_motif.kernels import AttentionStatistics, Documents
from titan_motif.model.args import Motif2ModelArgs
from titan_motif.model.norms import ScaledRMSNorm
from titan_motif.model.scalars import Scalars


def rotation_at(
    positions: Tensor,  # (batch or 1, seq)
    head_dim: int,
    theta: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # cos and sin, each (batch or 1, seq, 1, head_dim / 2)
    """Return the cosines and sines of every position's angles.

    Equation: angle = position * theta^(-2i / head_dim)   (https://arxiv.org/abs/2104.09864)
    Departs:  angles in float64, since at position 16,384 a float32 angle is off by 1e-3.
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64)[..., None] * theta ** (-steps / head_dim)
    return angles.cos().to(dtype)[:, :, None], angles.sin().to(dtype)[:, :, None]


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each head's (i, i + head_dim / 2) pairs by their position's angles (half-split RoPE).

    Shapes: x (batch, seq, heads, head_dim) -> same, in x's dtype; computed in the angles' dtype
    """
    cos, sin = rotation
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


class Attention(nn.Module):
    """Grouped differential attention; with grouped_ratio 0, plain attention."""

    def __init__(self, args: Motif2ModelArgs) -> None:
        super().__init__()
        self.grouped_ratio, self.head_dim = args.grouped_ratio, args.head_dim
        self.implementation = args.attention
        query_dim, key_dim = args.n_heads * args.head_dim, args.n_kv_heads * args.head_dim
        self.q_proj = nn.Linear(args.dim, query_dim, bias=False)
        self.k_proj = nn.Linear(args.dim, key_dim, bias=False)
        self.v_proj = nn.Linear(args.dim, key_dim, bias=False)
        self.o_proj = nn.Linear(args.num_signal_heads * args.value_dim, args.dim, bias=False)
        # One weight for all heads; plain attention has no norm on its heads.
        self.head_norm = (
            ScaledRMSNorm(args.value_dim, args.attn_norm_eps, args.kernels)
            if args.grouped_ratio
            else None
        )

    def forward(
        self,
        x: Tensor,  # (batch, seq, dim)
        rotation: tuple[Tensor, Tensor],
        scalars: Scalars,
        documents: Documents | None,
        exact_above: float | None,
    ) -> tuple[Tensor, AttentionStatistics | None]:  # (batch, seq, dim)
        """Attend; with `exact_above`, also tell the statistics (titan_motif.kernels)."""
        q, k, v = self.project(x, rotation)
        out, statistics = self.attend(q, k, v, scalars, documents, exact_above)
        return self.combine(out, scalars), statistics

    def project(
        self,
        x: Tensor,  # (batch, seq, dim)
        rotation: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:  # (batch, seq, heads or key heads, head_dim) each
        """Return queries and keys, turned by their positions, and values."""

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.head_dim))

        q, k = rotate(heads(self.q_proj(x)), rotation), rotate(heads(self.k_proj(x)), rotation)
        return q, k, heads(self.v_proj(x))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scalars: Scalars,
        documents: Documents | None = None,
        exact_above: float | None = None,
    ) -> tuple[Tensor, AttentionStatistics | None]:
        """Return what the heads find among as many keys, and the statistics that were asked for.

        Shapes: q, k, v as of `project`; out (batch, seq, signal heads, value_dim)
        """
        asked = {} if exact_above is None else {"with_statistics": True, "exact_above": exact_above}
        if self.head_norm is None:
            out = kernels.attention(q, k, v, documents, **asked)
        else:
            asked["implementation"] = self.implementation
            out = kernels.grouped_differential_attention(
                q, k, v, scalars.lam, self.grouped_ratio, documents, **asked
            )
        return (out, None) if exact_above is None else out

    def combine(
        self,
        out: Tensor,  # (batch, seq, signal heads, value_dim)
        scalars: Scalars,
    ) -> Tensor:  # (batch, seq, dim)
        """Normalise what the heads have found, and project it back into the residual stream."""
        if self.head_norm is not None:
            out = self.head_norm(out, scalars.output_scale)
        return self.o_proj(out.flatten(2))
