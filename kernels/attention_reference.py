"""Attention by PyTorch's scaled_dot_product_attention: the path on CPU, and the oracle's peer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def grouped_differential_attention(
    q: Tensor,  # (batch, seq, heads, head_dim)
    k: Tensor,  # (batch, keys, 2 * pairs, head_dim); without a mask as many as queries
    v: Tensor,  # (batch, keys, 2 * pairs, head_dim)
    lam: Tensor,  # scalar
    ratio: int,
    mask: Tensor | None = None,  # (batch, 1, seq, keys) bool: which keys a query attends to
    with_bounds: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return (out, signal maps, lam times noise maps, upper bounds of the heads' largest logits).

    Shapes:  maps and out (batch, seq, signal heads, 2 * head_dim); bounds (heads,) float32
    Departs: each softmax meets v1 and v2 in two SDPA calls, since the fast SDPA kernels want
             values as wide as the keys
    """
    batch, seq, num_heads, head_dim = q.shape
    groups = num_heads // (ratio + 1)
    grouped = q.view(batch, seq, groups, ratio + 1, head_dim)
    q_signal, q_noise = grouped[..., :ratio, :].flatten(2, 3), grouped[..., ratio, :]
    k_signal, k_noise = k[:, :, 0::2], k[:, :, 1::2]
    v_halves = v[:, :, 0::2], v[:, :, 1::2]

    def attend(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        halves, bounds = [], None
        for half in v_halves:
            out, found = attention(queries, keys, half, mask, with_bounds and not halves)
            halves.append(out)
            bounds = bounds if found is None else found
        return torch.cat(halves, dim=-1), bounds  # (batch, seq, heads, 2 * head_dim), contiguous

    signal, signal_bounds = attend(q_signal, k_signal)
    noise, noise_bounds = attend(q_noise, k_noise)
    noise = lam.to(q.dtype) * noise.repeat_interleave(ratio, dim=2)
    bounds = None
    if signal_bounds is not None and noise_bounds is not None:
        in_groups = torch.cat((signal_bounds.view(groups, ratio), noise_bounds[:, None]), dim=1)
        bounds = in_groups.flatten()
    return signal - noise, signal, noise, bounds


def attention(
    q: Tensor,  # (batch, seq, heads, head_dim)
    k: Tensor,  # (batch, keys, fewer or as many heads, head_dim); without a mask, as many keys
    v: Tensor,  # like k
    mask: Tensor | None = None,  # (batch, 1, seq, keys) bool; None is causal
    with_bounds: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return plain causal attention, and upper bounds of the heads' largest logits on request.

    A row's log-sum-exp lies between its largest logit and that plus log(seq): SDPA has it anyway.

    Shapes: out like q; bounds (heads,) float32, no gradient
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (batch, heads, seq, head_dim)
    if mask is not None and q.shape[2] == 1 and q.numel() and not with_bounds:
        # One query: the heads that share keys are queries of one head, and nothing is repeated.
        # One core of a CPU, 32 heads of 128 that share 8 and have 600 keys: 0.7 ms in place of 2.3.
        shared = q.reshape(len(q), k.shape[1], -1, q.shape[3])
        out = F.scaled_dot_product_attention(shared, k, v, mask)
        return out.flatten(1, 2)[:, None], None
    if mask is not None and q.is_cuda and k.shape[1] != q.shape[1]:
        # With a mask CUDA's kernels do not share key heads; what does holds (seq, seq) for each.
        k, v = (_share(x, q.shape[1]) for x in (k, v))
    if q.numel() == 0:
        # An empty batch has no result at all by CUDA's fused kernels (torch 2.11).
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        bounds = q.new_full((q.shape[1],), -math.inf, dtype=torch.float32)
        return out.transpose(1, 2), bounds if with_bounds else None
    if not with_bounds:
        causal = mask is None
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
        return out.transpose(1, 2), None
    out, logsumexp = _with_logsumexp(q, k, v, mask)
    if logsumexp is None:
        return out.transpose(1, 2), q.new_full((q.shape[1],), math.inf, dtype=torch.float32)
    bounds = logsumexp.detach()[..., : q.shape[2]].float().amax(dim=(0, 2))
    # Rounded sums may not make it a bound from below.
    return out.transpose(1, 2), bounds + 1e-3 * (1 + bounds.abs())


def _with_logsumexp(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Call one of SDPA's kernels by the name under which it also returns the row sums.

    Shapes: as SDPA's; the log-sum-exp (batch, heads, seq or more), None where no kernel serves
    """
    causal, aten = mask is None, torch.ops.aten
    bias = None
    if mask is not None:
        # CUDA's kernel wants rows of a multiple of 8.
        padded = q.new_zeros(*mask.shape[:-1], -(-mask.shape[-1] // 8) * 8)
        bias = padded[..., : mask.shape[-1]].masked_fill_(~mask, -math.inf)
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias
        )
    if q.shape[-1] % 8:  # SDPA pads such heads; its kernels by themselves refuse them
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
        return out, None
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and mask is None:
        if _prefers_cudnn(q.device):
            out, logsumexp, *_ = aten._scaled_dot_product_cudnn_attention(
                q, k, v, None, True, 0.0, causal
            )
            return out, logsumexp.reshape(q.shape[:3])
        out, logsumexp, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
        return out, logsumexp
    if q.is_cuda and q.dtype != torch.float64:
        k, v = (_share(x, q.shape[1]) for x in (k, v))
        bias = None if bias is None else bias.expand(-1, q.shape[1], -1, -1)
        out, logsumexp, *_ = aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, 0.0, causal
        )
        return out, logsumexp
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
    return out, None


@torch.compiler.assume_constant_result  # the compiler cannot trace what it asks
def _prefers_cudnn(device: torch.device) -> bool:
    """Return whether cuDNN's kernel is the faster one, as SDPA finds too."""
    is_hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    return is_hopper and torch.backends.cuda.cudnn_sdp_enabled()


def _share(x: Tensor, num_heads: int) -> Tensor:
    """Repeat key or value heads (batch, heads, seq, head_dim) for the query heads they serve."""
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)
