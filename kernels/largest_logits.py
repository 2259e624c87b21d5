"""The largest logit of every head, exactly, without a (seq, seq) matrix.

For attention that does not tell it (SDPA). Its log-sum-exp bounds it from above, so heads whose
bound lies under what anybody cares about are not looked at; which ones is decided on the device.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from titan_motif.kernels.launch import IS_INTERPRETED, runs_triton

_ROWS = 64
_COLUMNS = 64
_CHUNK = 1024
"""Queries at a time where PyTorch multiplies: (chunk, seq) logits of one head are held."""


def key_heads(num_heads: int, num_key_heads: int, ratio: int) -> list[int]:
    """Return the key head of each query head.

    With noise heads (ratio > 0) a group's signal heads meet the even head of a pair, its noise head
    the odd one; neighbouring groups share a pair. Without, neighbouring heads share a key head.
    """
    if ratio == 0:
        return [head * num_key_heads // num_heads for head in range(num_heads)]
    groups, pairs = num_heads // (ratio + 1), num_key_heads // 2
    return [
        2 * (group * pairs // groups) + int(place == ratio)
        for group in range(groups)
        for place in range(ratio + 1)
    ]


@triton.jit
def _largest_logits_kernel(
    q_ptr,  # (batch, seq, heads, head_dim)
    k_ptr,  # (batch, seq, key_heads, head_dim)
    first_ptr,  # (batch, seq)
    bound_ptr,  # (heads,)
    out_ptr,  # (heads,), holds -inf
    seq,
    num_heads,
    num_key_heads,
    scale,
    exact_above,
    RATIO: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    start, head = tl.program_id(0) * ROWS, tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    bound = tl.load(bound_ptr + head)
    if bound <= exact_above:
        tl.atomic_max(out_ptr + head, bound)
    else:
        rows = start + tl.arange(0, ROWS)
        dims = tl.arange(0, PADDED_DIM)
        row_mask = rows < seq
        mask = row_mask[:, None] & (dims < HEAD_DIM)[None, :]
        q_offsets = ((batch * seq + rows)[:, None] * num_heads + head) * HEAD_DIM + dims[None, :]
        q = tl.load(q_ptr + q_offsets, mask, other=0.0)
        if RATIO == 0:
            key_head = head * num_key_heads // num_heads
        else:
            groups, pairs = num_heads // (RATIO + 1), num_key_heads // 2
            key_head = 2 * (head // (RATIO + 1) * pairs // groups)
            key_head += (head % (RATIO + 1) == RATIO).to(tl.int32)
        begin = 0
        first = tl.zeros([ROWS], tl.int32)
        if HAS_DOCUMENTS:
            first = tl.load(first_ptr + batch * seq + rows, row_mask, other=seq)
            begin = tl.min(first) // COLUMNS * COLUMNS
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        for column in range(begin, tl.minimum(start + ROWS, seq), COLUMNS):
            columns = column + tl.arange(0, COLUMNS)
            k_mask = (columns < seq)[:, None] & (dims < HEAD_DIM)[None, :]
            k_rows = (batch * seq + columns)[:, None] * num_key_heads + key_head
            k = tl.load(k_ptr + k_rows * HEAD_DIM + dims[None, :], k_mask, other=0.0)
            logits = tl.dot(q, k.T, input_precision="ieee")
            allowed = row_mask[:, None] & (columns[None, :] <= rows[:, None])
            allowed &= columns[None, :] >= first[:, None]
            largest = tl.maximum(largest, tl.max(tl.where(allowed, logits, float("-inf")), 1))
        tl.atomic_max(out_ptr + head, tl.max(largest) * scale)


@torch.library.custom_op("titan_motif::largest_logits", mutates_args=())
def largest_logits(
    q: Tensor, k: Tensor, first: Tensor | None, bounds: Tensor, ratio: int, exact_above: float
) -> Tensor:
    """Return each head's largest scaled logit where `bounds` is above `exact_above`, else bounds.

    Shapes: q (batch, seq, heads, head_dim); k (batch, seq, key heads, head_dim); first (batch, seq)
            int32, of Documents; bounds (heads,) float32 -> (heads,) float32
    """
    if q.numel() == 0:
        return bounds.clone()
    # The interpreter multiplies no bfloat16.
    if runs_triton(q, "auto") and not (IS_INTERPRETED and q.dtype == torch.bfloat16):
        out = torch.full_like(bounds, -math.inf)
        _launch(q.contiguous(), k.contiguous(), first, bounds, out, ratio, exact_above)
        return out
    heads, out = key_heads(q.shape[2], k.shape[2], ratio), bounds.clone()
    for head in (~(bounds <= exact_above)).nonzero().flatten().tolist():
        out[head] = _largest(q[:, :, head], k[:, :, heads[head]], first)
    return out


@largest_logits.register_fake
def _(q, k, first, bounds, ratio, exact_above):
    return torch.empty_like(bounds)


def _launch(
    q: Tensor,
    k: Tensor,
    first: Tensor | None,
    bounds: Tensor,
    out: Tensor,
    ratio: int,
    exact_above: float,
) -> None:
    batch, seq, num_heads, head_dim = q.shape
    with torch.cuda.device_of(q):
        _largest_logits_kernel[(triton.cdiv(seq, _ROWS), num_heads, batch)](
            q,
            k,
            q if first is None else first.contiguous(),
            bounds,
            out,
            seq,
            num_heads,
            k.shape[2],
            head_dim**-0.5,
            exact_above,
            RATIO=ratio,
            HAS_DOCUMENTS=first is not None,
            HEAD_DIM=head_dim,
            PADDED_DIM=max(triton.next_power_of_2(head_dim), 16),
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
        )


def _largest(q: Tensor, k: Tensor, first: Tensor | None) -> Tensor:
    """The same of one head in PyTorch: q, k (batch, seq, head_dim) -> ()."""
    wide = torch.promote_types(q.dtype, torch.float32)
    largest = torch.tensor(-math.inf, dtype=wide, device=q.device)
    positions = torch.arange(q.shape[1], device=q.device)
    for begin in range(0, q.shape[1], _CHUNK):
        end = min(begin + _CHUNK, q.shape[1])
        logits = q[:, begin:end].to(wide) @ k[:, :end].to(wide).mT
        allowed = positions[:end] <= positions[begin:end, None]
        if first is not None:
            allowed = allowed & (positions[:end] >= first[:, begin:end, None])
        largest = largest.maximum(logits.masked_fill(~allowed, -math.inf).amax())
    return largest * q.shape[-1] ** -0.5
