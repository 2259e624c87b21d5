"""The network token by token: new tokens attend to the keys and values of those before them.

The training path knows nothing of this. What is computed here is what Motif2Model.forward computes
for the same tokens, by its own sub-modules; attention alone meets more keys than queries. A row's
slot p holds its position p, whatever the other rows have: what lies in later slots is either not
written yet or of padding, and causality hides both. So rows of different lengths need no mask of
their own, and padding stands on the right.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from titan_motif.kernels import attention_reference as reference
from titan_motif.model.args import Motif2ModelArgs
from titan_motif.model.attention import Attention, rotation_at
from titan_motif.model.model import Block, Motif2Model
from titan_motif.model.scalars import Scalars


class KeyValueCache:
    """The keys and values of every layer, (layers, batch, max_len, key heads, head_dim) each."""

    def __init__(
        self,
        args: Motif2ModelArgs,
        batch: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (args.n_layers, batch, max_len, args.n_kv_heads, args.head_dim)
        # Zeros: a slot that is masked still meets a weight of zero, and zero times NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    @property
    def num_bytes(self) -> int:
        """Of keys and values of all layers."""
        return self.keys.nbytes + self.values.nbytes

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Put keys and values (batch, seq, key heads, head_dim) into the slots of positions."""
        rows = torch.arange(len(k), device=k.device)[:, None]
        self.keys[layer][rows, positions] = k
        self.values[layer][rows, positions] = v

    def read(self, layer: int, num_keys: int) -> tuple[Tensor, Tensor]:
        """Return a layer's first keys and values, (batch, num_keys, key heads, head_dim) each."""
        return self.keys[layer, :, :num_keys], self.values[layer, :, :num_keys]

    def repeat(self, times: int) -> None:
        """Make every row so many rows, one after another."""
        if times == 1:
            return
        self.keys = self.keys.repeat_interleave(times, dim=1)
        self.values = self.values.repeat_interleave(times, dim=1)


class Decoder:
    """A model and the cache of one batch; `extend` runs further tokens of every row.

    Args:
        model:   whole, on one device; its parameters must not change while this is in use
        max_len: most tokens of a row
    """

    def __init__(self, model: Motif2Model, batch: int, max_len: int) -> None:
        self.model, self.args, self.max_len = model, model.model_args, max_len
        weight = model.tok_embeddings.weight
        self.device = weight.device
        self.cache = KeyValueCache(self.args, batch, max_len, weight.dtype, self.device)
        with torch.no_grad():
            scalars = model.scalars()
        self.scalars = [scalars.of_layer(layer) for layer in range(self.args.n_layers)]

    @torch.no_grad()
    def extend(
        self,
        tokens: Tensor,  # (batch, seq) integers
        begins: Sequence[int],  # (batch,): the position of each row's first token
    ) -> Tensor:  # (batch, seq, dim): what `logits` takes
        """Run tokens of every row, and keep their keys and values for those that follow.

        Rows may stand at different positions. What an earlier call wrote from `begins` on is
        forgotten, so that padding at the end of a row does no harm.

        Raises: ValueError if a row would be longer than max_len
        """
        seq = tokens.shape[1]
        num_keys = max(begins) + seq
        if num_keys > self.max_len:
            raise ValueError(f"a row of {num_keys} tokens; the cache has {self.max_len} slots")
        steps = torch.arange(seq, device=self.device)
        positions = torch.tensor(begins, device=self.device)[:, None] + steps  # (batch, seq)
        return self._run(tokens, positions, num_keys)

    @torch.no_grad()
    def logits(self, h: Tensor) -> Tensor:  # (..., dim) -> (..., vocab)
        """Return the logits of the token after each hidden state."""
        output = self.model.output
        return F.linear(h, (self.model.tok_embeddings if output is None else output).weight)

    def _run(self, tokens: Tensor, positions: Tensor, num_keys: int) -> Tensor:
        args = self.args
        dtype = self.scalars[0].lam.dtype
        rotation = rotation_at(positions, args.head_dim, args.rope_theta, dtype)
        mask = None
        if num_keys > tokens.shape[1]:  # else all rows begin here: nothing is in the cache
            keys = torch.arange(num_keys, device=self.device)
            mask = (keys <= positions[..., None])[:, None]  # (batch, 1, seq, keys)
        h = self.model.tok_embeddings(tokens)
        for layer, block in enumerate(self.model.layers.values()):
            h = self._block(layer, block, h, positions, rotation, mask)
        return self.model.norm(h)

    def _block(
        self,
        layer: int,
        block: Block,
        x: Tensor,
        positions: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        scalars, attention = self.scalars[layer], block.attention
        normed = block.attention_norm(x)
        q, k, v = attention.project(normed, rotation)
        self.cache.write(layer, k, v, positions)
        if mask is None:
            found, _ = attention.attend(q, k, v, scalars)
        else:
            keys, values = self.cache.read(layer, mask.shape[-1])
            found = attend_under_mask(attention, q, keys, values, scalars, mask)
        normed, h = block.ffn_norm(attention.combine(found, scalars), x)
        return h + block.feed_forward(normed, scalars)


def attend_under_mask(
    attention: Attention,
    q: Tensor,  # (batch, seq, heads, head_dim)
    keys: Tensor,  # (batch, keys, key heads, head_dim)
    values: Tensor,  # like keys
    scalars: Scalars,
    mask: Tensor,  # (batch, 1, seq, keys) bool
) -> Tensor:  # (batch, seq, signal heads, value_dim)
    """Return what a layer's heads find among the keys that a mask allows: plain PyTorch."""
    if attention.head_norm is None:
        return reference.attention(q, keys, values, mask)[0]
    ratio = attention.grouped_ratio
    return reference.grouped_differential_attention(q, keys, values, scalars.lam, ratio, mask)[0]
