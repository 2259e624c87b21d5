"""The feed-forward layer of a block: a gate through PolyNorm, times the up projection."""

from torch import Tensor, nn

from titan_motif.components import operators
from titan_motif.model.args import Motif2ModelArgs
from titan_motif.model.scalars import Scalars


class FeedForward(nn.Module):
    """down(PolyNorm(gate(x)) * up(x))."""

    def __init__(self, args: Motif2ModelArgs) -> None:
        super().__init__()
        self.eps, self.kernels = args.norm_eps, args.kernels
        self.gate_proj = nn.Linear(args.dim, args.hidden_dim, bias=False)
        self.up_proj = nn.Linear(args.dim, args.hidden_dim, bias=False)
        self.down_proj = nn.Linear(args.hidden_dim, args.dim, bias=False)

    def forward(
        self,
        x: Tensor,  # (batch, seq, dim)
        scalars: Scalars,
    ) -> Tensor:  # (batch, seq, dim)
        """Return down(PolyNorm(gate(x)) * up(x))."""
        gated = operators.poly_norm_mul(
            self.gate_proj(x),
            self.up_proj(x),
            scalars.poly_weight,
            scalars.poly_bias,
            self.eps,
            self.kernels,
        )
        return self.down_proj(gated)
