"""Whether a grown model computes what the small one does, layer by layer, on a small machine.

Of each model one block is in memory at a time, and of embedding and output what is needed.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from titan_motif.growth.mapping import layer_origins
from titan_motif.interchange.model_files import ModelFiles
from titan_motif.model.args import Motif2ModelArgs
from titan_motif.model.attention import rotation_at
from titan_motif.model.model import Block
from titan_motif.model.norms import RMSNorm
from titan_motif.model.scalars import ScalarParameters, Scalars

OUTPUT_ROWS = 8192
"""Entries of the vocabulary whose logits are computed at once."""


class Differences(NamedTuple):
    """Largest relative differences: the largest absolute one over the largest absolute value."""

    hidden: list[float]
    """After the embedding, and after each layer of the small model, over all copies."""
    logits: float

    @property
    def largest(self) -> float:
        """Of hidden states and logits."""
        return max(*self.hidden, self.logits)


class LayerByLayer:
    """A model on disk that is run block by block.

    Args:
        dtype: of all arithmetic
    """

    def __init__(self, files: ModelFiles, dtype: torch.dtype) -> None:
        self.files, self.dtype = files, dtype
        # Plain kernels: what is compared is the weights, in a dtype that no fast path takes.
        self.args = _plain(files.args)

    def embed(self, tokens: Tensor) -> Tensor:  # (batch, seq) -> (batch, seq, dim)
        """Return the residual stream before the first layer."""
        rows = F.embedding(tokens, self.files.read("tok_embeddings.weight"))
        return rows.to(self.dtype)

    def layers(self, h: Tensor) -> Iterator[Tensor]:  # (batch, seq, dim) each
        """Yield the residual stream after each layer."""
        positions = torch.arange(h.shape[1])[None]
        rotation = rotation_at(positions, self.args.head_dim, self.args.rope_theta, self.dtype)
        for layer in range(self.args.n_layers):
            with torch.device("meta"):
                block = Block(self.args)
            prefix = f"layers.{layer}."
            block.load_state_dict(
                {
                    name.removeprefix(prefix): self.files.read(name).to(self.dtype)
                    for name in self.files.tensors
                    if name.startswith(prefix)
                },
                assign=True,
            )
            h, _ = block(h, rotation, self._scalars(layer), None, None)
            yield h

    def logits(self, h: Tensor) -> Iterator[Tensor]:  # (batch, seq, part of vocab) each
        """Yield the logits of one range of the vocabulary after the other."""
        norm = RMSNorm(self.args.dim, self.args.norm_eps, "torch").to(self.dtype)
        norm.load_state_dict({"weight": self.files.read("norm.weight").to(self.dtype)})
        normed = norm(h)
        tied = self.args.tie_embeddings
        weight = self.files.read("tok_embeddings.weight" if tied else "output.weight")
        for rows in weight.split(OUTPUT_ROWS):
            yield F.linear(normed, rows.to(self.dtype))

    def _scalars(self, layer: int) -> Scalars:
        one = _plain(self.args, n_layers=1, lam_init=(self.args.layer_lam_init[layer],))
        scalars = ScalarParameters(one)
        prefix = f"scalars.layers.{layer}."
        read = {
            f"layers.0.{name.removeprefix(prefix)}": self.files.read(name)
            for name in self.files.tensors
            if name.startswith(prefix)
        }
        scalars.load_state_dict(read)
        scalars.reset_buffers()
        return scalars.to(self.dtype)().of_layer(0)


@torch.no_grad()
def compare(
    small: ModelFiles, large: ModelFiles, tokens: Tensor, dtype: torch.dtype
) -> Differences:
    """Run both models on tokens (batch, seq) and return how far they are from each other.

    The layers of the large one that were inserted are compared with the layer before them.
    """
    models = LayerByLayer(small, dtype), LayerByLayer(large, dtype)
    copies = large.args.dim // small.args.dim
    states = [model.embed(tokens) for model in models]
    hidden = [_difference(states[0].repeat(1, 1, copies), states[1])]
    small_layers, large_layers = (
        model.layers(state) for model, state in zip(models, states, strict=True)
    )
    for _, is_inserted in layer_origins(small.args, large.args):
        if not is_inserted:
            states[0] = next(small_layers)
        states[1] = next(large_layers)
        found = _difference(states[0].repeat(1, 1, copies), states[1])
        if is_inserted:
            hidden[-1] = max(hidden[-1], found)
        else:
            hidden.append(found)
    apart = largest = 0.0
    for then, now in zip(
        *(m.logits(state) for m, state in zip(models, states, strict=True)), strict=True
    ):
        apart = max(apart, _largest(then - now))
        largest = max(largest, float(then.abs().max()))
    return Differences(hidden, apart / max(largest, torch.finfo(dtype).tiny))


def _difference(then: Tensor, now: Tensor) -> float:
    largest = max(float(then.abs().max()), torch.finfo(then.dtype).tiny)
    return _largest(then - now) / largest


def _largest(values: Tensor) -> float:
    """Return the largest absolute value, infinity where one is not a number."""
    return float(values.abs().nan_to_num(nan=float("inf")).max())


def _plain(args: Motif2ModelArgs, **changes: object) -> Motif2ModelArgs:
    return dataclasses.replace(args, kernels="torch", attention="sdpa", **changes)
