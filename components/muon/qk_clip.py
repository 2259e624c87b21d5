"""QK-clip: query and key weights of a head whose logits grew too large are scaled down.

Together with Muon: MuonClip (Kimi K2, https://arxiv.org/abs/2507.20534, algorithm 1).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from titan_motif.components.muon.layout import local, regions_of

Balance = Literal["symmetric", "grouped"]
"""'symmetric': half of the correction each to queries and keys. 'grouped': less to a key head that
many query heads share."""


def key_exponents(key_of_query: Sequence[int], balance: Balance) -> list[float]:
    """Return the share r of the correction that each key head takes: gamma^r.

    1/2, or with 'grouped' 1 / (1 + sqrt(query heads that share it)), since a shared key head is
    moved for the sake of one of them.
    """
    num_sharing = [key_of_query.count(key) for key in range(max(key_of_query) + 1)]
    return [0.5 if balance == "symmetric" else 1 / (1 + n**0.5) for n in num_sharing]


def clip_factors(
    max_logits: Tensor,  # (layers, heads)
    key_of_query: Tensor,  # (heads,) integers: the key head of each query head
    exponents: Tensor,  # (key heads,)
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """Return the factors of the query heads (layers, heads) and key heads (layers, key heads).

    Equation: gamma_h = min(1, threshold / max_logit_h);  query_h = gamma_h^(1 - r);
              key_k = (least gamma of the heads that share k)^r
              so that the product of the two is at most gamma_h
    A maximum that is not finite, or not above the threshold, asks for nothing: a factor of one.
    """
    asks = max_logits.isfinite() & (max_logits > threshold)
    gamma = torch.where(asks, threshold / max_logits, 1.0)
    index = key_of_query.expand_as(gamma)
    least = gamma.new_ones(len(gamma), len(exponents)).scatter_reduce(1, index, gamma, "amin")
    return gamma ** (1 - exponents[key_of_query]), least**exponents


class QKClip:
    """Scales the weights of the query and key heads that ask for it, on any layout of ranks.

    Every rank scales the rows that it holds, by factors that are the same on all of them; nothing
    is sent, and the host waits for nothing.

    Args:
        queries, keys: weights, one of each a layer: (heads * head_dim, columns), (key heads *
                       head_dim, columns); plain tensors or DTensors
        key_of_query:  the key head of each query head
    Raises:    ValueError for weights of other shapes, a threshold that is not above zero, or an
               unknown balance
    """

    def __init__(
        self,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        key_of_query: Sequence[int],
        head_dim: int,
        # ASSUMPTION: the report names MuonClip alone; the threshold is Kimi K2's.
        threshold: float = 100.0,
        balance: Balance = "symmetric",
    ) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold is {threshold}; more than 0 is needed")
        if balance not in get_args(Balance):
            allowed = ", ".join(map(repr, get_args(Balance)))
            raise ValueError(f"balance is {balance!r}; one of {allowed} is needed")
        exponents = key_exponents(key_of_query, balance)
        for weights, heads in ((queries, len(key_of_query)), (keys, len(exponents))):
            for weight in weights:
                if weight.shape[0] != heads * head_dim:
                    raise ValueError(
                        f"a weight has {weight.shape[0]} rows; {heads} heads of {head_dim} need "
                        f"{heads * head_dim}"
                    )
        self.queries, self.keys = list(queries), list(keys)
        self.head_dim, self.threshold = head_dim, threshold
        self.key_of_query = torch.tensor(key_of_query)
        self.exponents = torch.tensor(exponents, dtype=torch.float32)
        self._rows = {weight: _rows_here(weight) for weight in (*queries, *keys)}

    @torch.no_grad()
    def __call__(self, max_logits: Tensor) -> Tensor:
        """Scale the weights in place; return how many query heads asked for it.

        Shapes: max_logits (layers, heads) float32, the same on every rank -> (), on the device
        """
        device = max_logits.device
        if self.exponents.device != device:  # the first call's; the weights' may be another one
            self.key_of_query = self.key_of_query.to(device)
            self.exponents = self.exponents.to(device)
        query_factors, key_factors = clip_factors(
            max_logits, self.key_of_query, self.exponents, self.threshold
        )
        for weights, factors in ((self.queries, query_factors), (self.keys, key_factors)):
            by_row = factors.repeat_interleave(self.head_dim, dim=1)[..., None]
            for weight, of_rows in zip(weights, by_row, strict=True):
                part = local(weight)
                part.mul_(of_rows[self._rows[weight]].to(part.device))
        return (query_factors < 1).sum()


def _rows_here(weight: Tensor) -> slice:
    """Return the rows of a matrix that this rank holds."""
    if not isinstance(weight, DTensor):
        return slice(None)
    region = regions_of(weight)[dist.get_rank()]
    return slice(region.row_begin, region.row_end)
