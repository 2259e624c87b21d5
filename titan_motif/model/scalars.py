"""The parameters that stay in float32 throughout: lambda's vectors and PolyNorm's coefficients.

They live outside the blocks, in one module of their own, for two reasons. FSDP's mixed precision
casts the parameters of a module as a whole, so what must not be cast needs its own; and one module
for all layers is one small all-gather a step instead of one a layer. The blocks receive tensors,
which also lets torch.compile share one graph between layers whose lambda differs.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from titan_motif.model.args import Motif2ModelArgs


class Scalars(NamedTuple):
    """What blocks need of the float32 parameters: of one layer, or stacked over all layers."""

    lam: Tensor  # scalar: weight of the noise map
    output_scale: Tensor  # scalar: 1 - lam_init, on the normalised output of each head
    poly_weight: Tensor  # (3,)
    poly_bias: Tensor  # (1,)

    def of_layer(self, layer: int) -> "Scalars":
        """Return one layer's part of what is stacked over all layers."""
        return Scalars(*(stacked[layer] for stacked in self))


class LayerScalarParameters(nn.Module):
    """One layer's float32 parameters, named as in the released checkpoints."""

    def __init__(self, args: Motif2ModelArgs) -> None:
        super().__init__()
        if args.grouped_ratio:
            for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
                self.register_parameter(name, _float32_parameter(args.head_dim))
        self.poly_weight = _float32_parameter(3)
        self.poly_bias = _float32_parameter(1)


class ScalarParameters(nn.Module):
    """The float32 parameters of all layers; calling it gives what the blocks take."""

    def __init__(self, args: Motif2ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.layers = nn.ModuleList(LayerScalarParameters(args) for _ in range(args.n_layers))
        self.register_buffer(
            "lam_init", torch.empty(args.n_layers, dtype=torch.float32), persistent=False
        )

    def reset_buffers(self) -> None:
        """Write lambda's constants; buffers built on meta hold nothing yet."""
        values = torch.tensor(self.args.layer_lam_init, dtype=torch.float64)
        local = self.lam_init.to_local() if isinstance(self.lam_init, DTensor) else self.lam_init
        local.copy_(values)

    def _stack(self, name: str) -> Tensor:
        return torch.stack([getattr(layer, name) for layer in self.layers])

    def forward(self) -> Scalars:
        """Return lambda and the PolyNorm coefficients, stacked over all layers.

        Equation: lam = exp(sum(q1 k1)) - exp(sum(q2 k2)) + lam_init  (https://arxiv.org/abs/2410.05258)
        """
        weights, biases = self._stack("poly_weight"), self._stack("poly_bias")
        if self.args.grouped_ratio:
            signal = (self._stack("lambda_q1") * self._stack("lambda_k1")).sum(-1).exp()
            noise = (self._stack("lambda_q2") * self._stack("lambda_k2")).sum(-1).exp()
            lam = signal - noise + self.lam_init
        else:
            lam = torch.zeros_like(self.lam_init)
        return Scalars(lam, 1 - self.lam_init, weights, biases)


def _float32_parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32))
