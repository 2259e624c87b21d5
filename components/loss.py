"""Cross-entropy over a large vocabulary, from hidden states to gradients, without whole logits.

Equations, for the logits z of one token and its label y (sums over the tokens that count):
    lse            = log sum_v exp(z_v)
    cross-entropy  = lse - z_y
    z-loss         = c lse^2                                  (https://arxiv.org/abs/2204.02311)
    d total / dz_v = (1 + 2 c lse) exp(z_v - lse) - [v = y]

The tokens go through in chunks, and the gradients are computed in the forward pass, while a chunk's
logits are there: what is left of it are the gradients of the hidden states and of the weight. So
one chunk's logits are held at a time, in the dtype of the products; float32 is what a compiled
kernel has in its registers (uncompiled, one chunk in float32 is held too).

Under tensor parallelism a rank has a part of the vocabulary. The ranks exchange three numbers a
token (largest logit, sum of exponentials, the label's logit), once a chunk.

Why not a library's: PyTorch 2.13's F.linear_cross_entropy does the same for one rank, is not in
2.11, has no z-loss and no sharded vocabulary; Liger-Kernel's and Apple's fused forms need Triton
and a whole vocabulary as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial
from torchtitan.components.loss import IGNORE_INDEX


class Loss(NamedTuple):
    """Sums over the tokens whose label counts, in float32 (nats)."""

    total: Tensor
    """Scalar with a gradient: cross-entropy and z-loss."""
    cross_entropy: Tensor
    """Scalar to look at."""
    z_loss: Tensor
    """Scalar to look at."""


class LinearCrossEntropy:
    """Computes the loss of an output projection; callable.

    Args:
        chunk_tokens:  tokens of this rank whose logits are held at a time
        z_loss_weight: c in the equations; 0 leaves the z-loss out
    """

    def __init__(self, chunk_tokens: int, z_loss_weight: float = 0.0) -> None:
        self.chunk_tokens, self.z_loss_weight = chunk_tokens, z_loss_weight
        self.statistics, self.make_gradient, self.scale = _statistics, _make_gradient, _scale

    def compile(self, backend: str | Callable[..., Any]) -> None:
        """Let what is done to a chunk's logits be two kernels each, and the last scaling one."""
        options = {"backend": backend, "fullgraph": True, "dynamic": False}
        self.statistics = torch.compile(_statistics, **options)
        self.make_gradient = torch.compile(_make_gradient, **options)
        self.scale = torch.compile(_scale, **options)

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Loss:
        """Return the loss of hidden @ weight.T against the labels.

        Shapes: hidden (..., dim), weight (vocab, dim), labels (...) integers, IGNORE_INDEX where a
                token does not count (an id that is none of the rows gives an infinite loss).
                With tensor parallelism weight is a DTensor that is sharded by
                rows, hidden a replicated one; the loss is then the same plain tensor on every rank.
        """
        mesh = None
        if isinstance(weight, DTensor):
            (rows,), (whole,) = weight.placements, hidden.placements
            assert rows.is_shard(0), "the weight has to be sharded by its rows"
            assert whole.is_replicate(), "hidden states have to be whole"
            mesh = weight.device_mesh
            # A rank's part of the vocabulary gives a part of the hidden states' gradient.
            hidden, weight = hidden.to_local(grad_placements=[Partial()]), weight.to_local()
        hidden, labels = hidden.flatten(0, -2), labels.flatten()
        differentiates = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        return Loss(*_Function.apply(hidden, weight, labels, self, mesh, differentiates))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,  # (tokens, dim)
        weight: Tensor,  # (rows of this rank, dim)
        labels: Tensor,  # (tokens,)
        settings: LinearCrossEntropy,
        mesh: DeviceMesh | None,
        differentiates: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        z_weight = settings.z_loss_weight
        first_row = 0 if mesh is None else mesh.get_local_rank() * len(weight)
        grad_hidden = torch.empty_like(hidden) if differentiates else None
        grad_weight: Tensor | None = None
        sums = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        chunks = [part.split(settings.chunk_tokens) for part in (hidden, labels)]
        begin = 0
        for states, wanted in zip(*chunks, strict=True):
            counts = wanted != IGNORE_INDEX
            column = wanted - first_row
            is_here = (column >= 0) & (column < len(weight))
            column = column.clamp(0, len(weight) - 1)
            logits = states @ weight.t()
            found = settings.statistics(logits, column, is_here)
            lse, label_logit = _over_ranks(found, mesh)
            sums[0] += torch.where(counts, lse - label_logit, 0).sum()
            sums[1] += torch.where(counts, z_weight * lse.square(), 0).sum()
            if differentiates:
                factor = torch.where(counts, 1 + 2 * z_weight * lse, 0)
                at_label = torch.where(counts, factor * (label_logit - lse).exp() - 1, 0)
                settings.make_gradient(logits, lse, factor, column, is_here, at_label)
                torch.mm(logits, weight, out=grad_hidden[begin : begin + len(states)])
                grad_weight = _add_product(grad_weight, logits.t(), states, len(chunks[0]) > 1)
            begin += len(states)
            del logits  # before the next chunk's are made
        if differentiates:
            ctx.gradients, ctx.scale = (grad_hidden, grad_weight), settings.scale
        cross_entropy, z_loss = (part.clone() for part in sums)
        ctx.mark_non_differentiable(cross_entropy, z_loss)
        return cross_entropy + z_loss, cross_entropy, z_loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *unused) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass has left; it goes, so that there is no second time."""
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss are used up: it has one backward pass")
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None
        dtype = grad_hidden.dtype
        # Of one dimension, it is not rounded to the gradients' dtype before the product.
        factor = grad.reshape(1)
        grad_hidden.mul_(factor)
        if grad_weight.dtype == dtype:
            grad_weight.mul_(factor)
        else:
            grad_weight = ctx.scale(grad_weight, grad, dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _statistics(
    logits: Tensor,  # (tokens, rows)
    column: Tensor,  # (tokens,) of the label, among this rank's
    is_here: Tensor,  # (tokens,) whether the label is this rank's
) -> Tensor:  # (3, tokens) float32
    """Return the largest logit, the sum of exponentials under it, and the label's logit or -inf."""
    largest = logits.amax(-1).float()
    total = (logits.float() - largest[:, None]).exp().sum(-1)
    label_logit = logits.gather(-1, column[:, None])[:, 0].float()
    return torch.stack((largest, total, label_logit.masked_fill(~is_here, -torch.inf)))


def _over_ranks(found: Tensor, mesh: DeviceMesh | None) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp and the label's logit of each token, over all ranks' rows."""
    if mesh is None:
        largest, total, label_logit = found
        return largest + total.log(), label_logit
    gathered = found.new_empty(mesh.size(), *found.shape)
    dist.all_gather(list(gathered.unbind()), found, group=mesh.get_group())
    largest, total, label_logit = gathered.unbind(1)
    return (largest + total.log()).logsumexp(0), label_logit.amax(0)


def _make_gradient(
    logits: Tensor,  # (tokens, rows)
    lse: Tensor,  # (tokens,)
    factor: Tensor,  # (tokens,) of the softmax
    column: Tensor,  # (tokens,)
    is_here: Tensor,  # (tokens,)
    at_label: Tensor,  # (tokens,) gradient of the label's logit
) -> None:
    """Overwrite logits by their gradient."""
    logits.copy_((logits.float() - lse[:, None]).exp() * factor[:, None])
    column = column[:, None]
    kept = torch.where(is_here, at_label.to(logits.dtype), logits.gather(-1, column)[:, 0])
    logits.scatter_(-1, column, kept[:, None])


def _scale(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradient * factor in another dtype, without a product in the first one."""
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))


def _add_product(total: Tensor | None, a: Tensor, b: Tensor, is_one_of_many: bool) -> Tensor:
    """Return total + a @ b: in a's dtype if there is one product, else summed in float32."""
    if not is_one_of_many or a.dtype == torch.float32:
        return a @ b if total is None else total.addmm_(a, b)
    if a.device.type != "cuda":  # no product there has another dtype than its factors
        product = a.float() @ b.float()
        return product if total is None else total.add_(product)
    if total is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
