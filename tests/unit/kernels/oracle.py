"""Random inputs, and how far an operator and its gradients are from float64."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from titan_motif.kernels.launch import IS_INTERPRETED

BOUNDS = {
    torch.float32: 2e-6,
    # Triton's interpreter cuts float32 to bfloat16 where a GPU rounds: twice the error.
    torch.bfloat16: 8e-3 if IS_INTERPRETED else 4e-3,
    torch.float16: 1e-3,
}
"""Relative norm of the error: float32's own, and one rounding of the result for the others."""


def draw(*shape: int, device: str, dtype=torch.float32, scale: float = 1.0, seed: int) -> Tensor:
    """Normal values around 0.5: sums over rows then do not cancel, so that errors are relative."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.5
    return (scale * values).to(dtype).to(device)


def relative_error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    difference = (found.double() - exact).norm()
    return (difference / exact.norm()).item() if exact.norm() else difference.item()


def with_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    out_gradients: Sequence[Tensor],
) -> list[Tensor]:
    """Return the outputs, then the gradient of each input."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = torch.autograd.grad(outputs, inputs, out_gradients)
    return [*(out.detach() for out in outputs), *gradients]


def errors(fast, reference, inputs: Sequence[Tensor], out_gradients: Sequence[Tensor]):
    """Return the relative error of each output and gradient of `fast` against float64."""
    found = with_gradients(fast, inputs, out_gradients)
    wide_inputs = [tensor.double() for tensor in inputs]
    exact = with_gradients(reference, wide_inputs, [g.double() for g in out_gradients])
    for tensor, given in zip(found[len(out_gradients) :], inputs, strict=True):
        assert tensor.dtype == given.dtype
    return [relative_error(a, b) for a, b in zip(found, exact, strict=True)]


class Launches:
    """Stands in a module for a Triton kernel, and counts its launches."""

    def __init__(self, monkeypatch, module, name: str) -> None:
        self.kernel, self.count = getattr(module, name), 0
        monkeypatch.setattr(module, name, self)

    def __getitem__(self, grid):
        self.count += 1
        return self.kernel[grid]


def causal_logits(q: Tensor, k: Tensor, ratio: int, document_ids: Tensor | None = None) -> Tensor:
    """Return every query head's scaled logits, -inf where it may not look; ratio 0: no noise heads.

    Shapes: q (batch, seq, heads, head_dim), k (batch, seq, key heads, head_dim)
            -> (batch, heads, seq, seq)
    """
    batch, seq, num_heads, head_dim = q.shape
    met = [key_head_of(head, num_heads, k.shape[2], ratio) for head in range(num_heads)]
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k[:, :, met]) / head_dim**0.5
    allowed = torch.ones(batch, seq, seq, dtype=torch.bool, device=q.device).tril()
    if document_ids is not None:
        runs = (document_ids.diff(dim=1) != 0).cumsum(1)  # number of each token's but the first
        runs = torch.nn.functional.pad(runs, (1, 0))
        allowed &= runs[:, :, None] == runs[:, None, :]
    return logits.masked_fill(~allowed[:, None], -torch.inf)


def key_head_of(head: int, num_heads: int, num_key_heads: int, ratio: int) -> int:
    """Return the key head that a query head meets: neighbours share, noise heads the odd ones."""
    if ratio == 0:
        return head // (num_heads // num_key_heads)
    group, place = divmod(head, ratio + 1)
    groups_per_pair = num_heads // (ratio + 1) // (num_key_heads // 2)
    return 2 * (group // groups_per_pair) + (place == ratio)


def attention_maps(
    q: Tensor, k: Tensor, v: Tensor, ratio: int, document_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the softmax of the signal heads and of the noise heads, times the pairs' values.

    Shapes: as q, k and v of grouped_differential_attention -> (batch, seq, groups, ratio,
            2 * head_dim) and (batch, seq, groups, 1, 2 * head_dim)
    """
    weights = causal_logits(q, k, ratio, document_ids).softmax(-1)
    values = torch.cat((v[:, :, 0::2], v[:, :, 1::2]), -1)  # (batch, seq, pairs, 2 * head_dim)
    values = values.repeat_interleave(q.shape[2] // values.shape[2], dim=2)
    maps = torch.einsum("bhqk,bkhw->bqhw", weights, values).unflatten(2, (-1, ratio + 1))
    return maps[..., :ratio, :], maps[..., ratio:, :]


def differential_attention(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, ratio: int, document_ids: Tensor | None = None
) -> Tensor:
    """Return grouped differential attention by its formula, with whole (seq, seq) matrices."""
    signal, noise = attention_maps(q, k, v, ratio, document_ids)
    return (signal - lam * noise).flatten(2, 3)


def packed_ids(batch: int, seq: int, device: str) -> Tensor:
    """Ids of packed documents, and ids that come back later; the sequences take turns.

    One is cut at and beside tiles' edges. Two have a document of two thirds of the sequence, at
    its end and at its start: there lie whole tiles between those that need a mask.
    """
    cuts = [{1, 64, seq // 2, 128, seq - 1}, {seq // 3}, {seq - seq // 3}]
    ids = torch.zeros(batch, seq, dtype=torch.long)
    for row, sequence in enumerate(ids):
        for number, cut in enumerate(sorted(cuts[row % 3])):
            sequence[cut:] = (number + 1) % 2
    return ids.to(device)
