"""The Motif-2 network: embedding, pre-norm blocks, final norm, output projection."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtitan.protocols.model import ModelProtocol

from titan_motif.components.loss import LinearCrossEntropy, Loss
from titan_motif.kernels import AttentionStatistics, Documents, documents_of
from titan_motif.model.args import Motif2ModelArgs
from titan_motif.model.attention import Attention, rotation_at
from titan_motif.model.attention_record import AttentionRecord
from titan_motif.model.feed_forward import FeedForward
from titan_motif.model.initialization import initialize
from titan_motif.model.norms import AddRMSNorm, RMSNorm
from titan_motif.model.scalars import ScalarParameters, Scalars


class Block(nn.Module):
    """One layer: h = x + attention(norm(x)); out = h + feed_forward(norm(h))."""

    def __init__(self, args: Motif2ModelArgs) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(args.dim, args.norm_eps, args.kernels)
        self.attention = Attention(args)
        self.ffn_norm = AddRMSNorm(args.dim, args.norm_eps, args.kernels)
        self.feed_forward = FeedForward(args)

    def forward(
        self,
        x: Tensor,  # (batch, seq, dim)
        rotation: tuple[Tensor, Tensor],
        scalars: Scalars,
        documents: Documents | None,
        exact_above: float | None,
    ) -> tuple[Tensor, AttentionStatistics | None]:  # (batch, seq, dim)
        """Return the residual stream behind the block, and attention's statistics if recorded."""
        normed = self.attention_norm(x)
        attended, statistics = self.attention(normed, rotation, scalars, documents, exact_above)
        normed, h = self.ffn_norm(attended, x)
        return h + self.feed_forward(normed, scalars), statistics


class OutputProjection(nn.Linear):
    """Hidden states to logits or, with labels, to the loss: FSDP gathers its weight for both."""

    def __init__(self, dim: int, vocab_size: int, loss: LinearCrossEntropy) -> None:
        super().__init__(dim, vocab_size, bias=False)
        self.loss = loss

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor | Loss:
        """Return logits, or with labels their loss.

        Shapes: h (batch, seq, dim), labels (batch, seq) -> (batch, seq, vocab), or a loss's
        """
        return project(h, self.weight, labels, self.loss)


def project(
    h: Tensor, weight: Tensor, labels: Tensor | None, loss: LinearCrossEntropy
) -> Tensor | Loss:
    """Return the logits of hidden states, or with labels their loss."""
    return F.linear(h, weight) if labels is None else loss(h, weight, labels)


class Motif2Model(ModelProtocol):
    """A decoder of the Motif-2 family (https://arxiv.org/abs/2511.07464).

    Build it on the meta device, apply the parallelism, `to_empty`, then `init_weights`.
    """

    def __init__(self, args: Motif2ModelArgs) -> None:
        super().__init__(args)
        self.model_args = args
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        self.scalars = ScalarParameters(args)
        self.attention_record = AttentionRecord(args.n_layers, args.n_heads)
        self.layers = nn.ModuleDict({str(i): Block(args) for i in range(args.n_layers)})
        self.norm = RMSNorm(args.dim, args.norm_eps, args.kernels)
        self.loss = LinearCrossEntropy(args.loss_chunk_tokens, args.z_loss)
        self.output = (
            None if args.tie_embeddings else OutputProjection(args.dim, args.vocab_size, self.loss)
        )

    def init_weights(self, buffer_device: torch.device | None = None) -> None:
        """Fill every parameter and buffer, with the same values on any layout of ranks."""
        initialize(self, self.model_args)
        self.scalars.reset_buffers()
        self.attention_record.reset()
        if buffer_device is not None:
            self.scalars.lam_init = self.scalars.lam_init.to(buffer_device)
            self.attention_record.to(buffer_device)

    def forward(
        self,
        tokens: Tensor,  # (batch, seq) integers
        positions: Tensor | None = None,  # (batch, seq) integers; None counts from zero
        document_ids: Tensor | None = None,  # (batch, seq) integers; None: one document
        labels: Tensor | None = None,  # (batch, seq) integers
    ) -> Tensor | Loss:  # (batch, seq, vocab), in the dtype of the matrix products
        """Return the logits of the token after each position or, with labels, their loss.

        A token attends to its own document: the run of equal ids that it lies in. The loss is
        computed in here because outside the output projection's weight is sharded.
        """
        h = self.hidden_states(tokens, positions, document_ids)
        if self.output is None:
            return project(h, self.tok_embeddings.weight, labels, self.loss)
        return self.output(h, labels=labels)

    def hidden_states(
        self,
        tokens: Tensor,  # (batch, seq) integers
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:  # (batch, seq, dim)
        """Return what the output projection takes; the arguments are `forward`'s."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        scalars = self.scalars()
        args = self.model_args
        rotation = rotation_at(positions, args.head_dim, args.rope_theta, scalars.lam.dtype)
        documents = None if document_ids is None else documents_of(document_ids)
        record = self.attention_record
        is_recording = record.is_recording and self.training
        exact_above = record.exact_above if is_recording else None
        seen = []
        h = self.tok_embeddings(tokens)
        for layer, block in enumerate(self.layers.values()):
            h, statistics = block(h, rotation, scalars.of_layer(layer), documents, exact_above)
            seen.append(statistics)
        if is_recording:
            record.add(seen, scalars.lam)
        return self.norm(h)


def parameter_shapes(args: Motif2ModelArgs) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a network's tensors, in its order."""
    with torch.device("meta"):
        model = Motif2Model(args)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
