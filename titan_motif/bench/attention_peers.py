"""Grouped differential attention as PyTorch's fused attention allows it, beside the SDPA path.

Arguments are those of `kernels.grouped_differential_attention`.
"""

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

WIDE_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
]
"""Those of SDPA that may take values wider than keys; the one left out holds (seq, seq) logits."""


def two_calls(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, ratio: int) -> Tensor:
    """Call SDPA for the signal heads and for the noise heads, with values of full width.

    Key heads are repeated, a small cost: the kernels that take wide values may not share them.

    Raises: RuntimeError where no backend takes wide values
    """
    values = v.unflatten(2, (-1, 2)).flatten(3)  # (batch, seq, pairs, 2 * head_dim)

    def attend(queries: Tensor, keys: Tensor) -> Tensor:
        shared_by = queries.shape[2] // keys.shape[2]
        repeated = [x.transpose(1, 2).repeat_interleave(shared_by, 1) for x in (keys, values)]
        with sdpa_kernel(WIDE_BACKENDS):
            out = F.scaled_dot_product_attention(queries.transpose(1, 2), *repeated, is_causal=True)
        return out.transpose(1, 2)

    return _difference(attend, q, k, lam, ratio)


def four_varlen_calls(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    begins: Tensor,  # (documents + 1,) int32: in all sequences' tokens; the last is their number
    longest: int,
    ratio: int,
) -> Tensor:
    """Call variable-length flash attention within documents for each half of the values.

    Raises: RuntimeError where there is no such kernel, as on a CPU
    """
    # From torch 2.12 on, sharing key heads has to be asked for; 2.11 does it unasked.
    is_asked = "enable_gqa" in inspect.signature(varlen_attn).parameters
    sharing = {"enable_gqa": True} if is_asked else {}

    def attend(queries: Tensor, keys: Tensor) -> Tensor:
        halves = []
        for half in (v[:, :, 0::2], v[:, :, 1::2]):
            tokens = [x.flatten(0, 1) for x in (queries, keys, half)]
            limits = begins, begins, longest, longest
            halves.append(varlen_attn(*tokens, *limits, window_size=(-1, 0), **sharing))
        return torch.cat(halves, dim=-1).unflatten(0, q.shape[:2])

    return _difference(attend, q, k, lam, ratio)


def _difference(
    attend: Callable[[Tensor, Tensor], Tensor], q: Tensor, k: Tensor, lam: Tensor, ratio: int
) -> Tensor:
    """Return the signal maps minus lam times their group's noise map."""
    grouped = q.unflatten(2, (-1, ratio + 1))
    signal = attend(grouped[..., :ratio, :].flatten(2, 3), k[:, :, 0::2])
    noise = attend(grouped[..., ratio, :], k[:, :, 1::2])
    return signal - lam.to(q.dtype) * noise.repeat_interleave(ratio, dim=2)
