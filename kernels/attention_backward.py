"""Backward pass of grouped differential attention in Triton: logits are computed again.

With A_h the map of query head h before the difference, O_s = A_s - lam A_g, and W_h = softmax:

    dA_s = dO_s;  dA_g = -lam sum_s dO_s;  dlam = -sum dO_s A_g
    dV   = sum_h W_h^T dA_h
    dS_h = W_h (dA_h V^T - delta_h),  delta_h = rowsum(dA_h A_h)      (https://arxiv.org/abs/2205.14135)
    dQ_h = dS_h K / sqrt(d);  dK = sum_h dS_h^T Q_h / sqrt(d)

A_s is O_s + lam A_g, so the noise maps and the output are all that is kept of the forward pass.
Programs of `_attention_keys_kernel` hold a block of keys and go through the queries of every head
that meets them; those of `_attention_queries_kernel` hold a block of queries. Nothing is summed in
an order that is not fixed: two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from titan_motif.kernels.attention_forward import (
    Shape,
    Tiles,
    descriptor,
    is_hopper,
    key_range,
    place_of,
    section_of,
)
from titan_motif.kernels.documents import Documents


@triton.jit
def _attention_prepare_kernel(
    dout_ptr,  # (batch, seq, signal heads, WIDTH)
    out_ptr,  # like dout
    noise_ptr,  # (batch, seq, groups, WIDTH)
    lam_ptr,  # ()
    dnoise_ptr,  # like noise: gradient of the noise maps
    delta_ptr,  # (batch, heads, seq)
    dlam_ptr,  # (programs,)
    seq,
    num_groups,
    RATIO: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    num_blocks = tl.cdiv(seq, ROWS)
    group = tl.program_id(0) % num_groups
    block = tl.program_id(0) // num_groups % num_blocks
    batch = (tl.program_id(0) // (num_groups * num_blocks)).to(tl.int64)
    rows = block * ROWS + tl.arange(0, ROWS)
    is_row = rows < seq
    tokens = (batch * seq + rows)[:, None]
    dims = tl.arange(0, WIDTH)[None, :]
    offsets = (tokens * num_groups + group) * WIDTH + dims
    noise = tl.load(noise_ptr + offsets, is_row[:, None], other=0.0).to(tl.float32)
    lam = tl.load(lam_ptr)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    num_heads = num_groups * (RATIO + 1)
    deltas = delta_ptr + (batch * num_heads + group * (RATIO + 1)) * seq + rows
    for place in range(RATIO):
        signal_offsets = (tokens * (num_groups * RATIO) + group * RATIO + place) * WIDTH + dims
        dout = tl.load(dout_ptr + signal_offsets, is_row[:, None], other=0.0).to(tl.float32)
        out = tl.load(out_ptr + signal_offsets, is_row[:, None], other=0.0).to(tl.float32)
        tl.store(deltas + place * seq, tl.sum(dout * (out + lam * noise), 1), is_row)
        total += dout
    tl.store(dlam_ptr + tl.program_id(0), -tl.sum(total * noise))
    dnoise = (-lam * total).to(dnoise_ptr.dtype.element_ty)
    tl.store(dnoise_ptr + offsets, dnoise, is_row[:, None])
    tl.store(deltas + RATIO * seq, tl.sum(dnoise.to(tl.float32) * noise, 1), is_row)


@triton.jit
def _meet_queries(
    dk,  # (COLUMNS, HEAD_DIM)
    dv,  # (COLUMNS, 2 * HEAD_DIM)
    k,  # (COLUMNS, HEAD_DIM)
    v,  # (COLUMNS, 2 * HEAD_DIM)
    q_desc,
    dmap_desc,  # gradient of the maps: of signal heads, or of noise heads
    logsumexp_ptr,  # of the batch
    delta_ptr,  # of the batch
    top,  # row of the sequence's first token in the descriptors
    seq,
    group,  # the first of those that meet the keys
    columns,  # (COLUMNS,)
    last,  # (COLUMNS,)
    begin,  # the blocks of queries [begin, begin + gap_at * ROWS) and those after a gap
    gap_at,
    gap,
    num_blocks,  # of queries, for each head
    num_heads_here,
    scale,
    RATIO: tl.constexpr,
    IS_NOISE: tl.constexpr,
    IS_MASKED: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    WRITES_DK: tl.constexpr,
    WRITES_DV: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Add what blocks of queries contribute to the gradients of a block of keys and values."""
    for index in range(num_blocks * num_heads_here):
        place = index // num_blocks
        # From the end, where programs of all keys begin together and share what they read.
        number = num_blocks - 1 - index % num_blocks
        start = begin + number * ROWS
        if IS_MASKED:
            start += tl.where(number >= gap_at, gap, 0)
        if IS_NOISE:
            head = (group + place) * (RATIO + 1) + RATIO
            column = (group + place) * (2 * HEAD_DIM)
        else:
            head = (group + place // RATIO) * (RATIO + 1) + place % RATIO
            column = (group * RATIO + place) * (2 * HEAD_DIM)
        rows = start + tl.arange(0, ROWS)
        is_row = rows < seq
        q = q_desc.load([top + start, head * HEAD_DIM])
        # Rows beyond the sequence get no weight.
        logsumexp = tl.load(logsumexp_ptr + head * seq + rows, is_row, other=float("inf"))
        weights = tl.math.exp2(tl.dot(k, q.T) * scale - logsumexp[None, :])
        if IS_MASKED:
            allowed = rows[None, :] >= columns[:, None]
            if HAS_DOCUMENTS:
                allowed &= rows[None, :] <= last[:, None]
            weights = tl.where(allowed, weights, 0.0)
        dmap = dmap_desc.load([top + start, column])
        if WRITES_DV:
            dv = tl.dot(weights.to(dmap.dtype), dmap, dv)
        if WRITES_DK:
            delta = tl.load(delta_ptr + head * seq + rows, is_row, other=0.0)
            dlogits = weights * (tl.dot(v, dmap.T) - delta[None, :])
            dk = tl.dot(dlogits.to(q.dtype), q, dk)
    return dk, dv


@triton.jit
def _attention_keys_kernel(
    q_desc,  # (batch * seq, heads * HEAD_DIM)
    k_desc,  # (batch * seq, 2 * pairs * HEAD_DIM)
    v_desc,  # (batch * seq, pairs * 2 * HEAD_DIM)
    dout_desc,  # (batch * seq, signal heads * 2 * HEAD_DIM)
    dnoise_desc,  # (batch * seq, groups * 2 * HEAD_DIM)
    last_ptr,  # (batch, seq)
    logsumexp_ptr,  # (batch, heads, seq)
    delta_ptr,  # (batch, heads, seq)
    dk_ptr,  # (batch, seq, 2 * pairs, HEAD_DIM)
    dv_ptr,  # (batch, seq, pairs, 2 * HEAD_DIM)
    seq,
    num_pairs,
    groups_per_pair,
    scale,
    inverse_root,  # 1 / sqrt(d)
    RATIO: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    WRITES_DK: tl.constexpr,
    WRITES_DV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    num_blocks = tl.cdiv(seq, COLUMNS)
    section, block, _ = section_of(num_blocks, 1)  # the first keys meet the most queries
    pair = section % num_pairs
    batch = section // num_pairs
    num_heads = num_pairs * groups_per_pair * (RATIO + 1)
    group = pair * groups_per_pair
    top = batch * seq
    start = block * COLUMNS
    columns = start + tl.arange(0, COLUMNS)
    is_column = columns < seq
    logsumexp_ptr += batch.to(tl.int64) * num_heads * seq
    delta_ptr += batch.to(tl.int64) * num_heads * seq

    # Queries [begin, whole) and [partial, end) need a mask, those between do not.
    begin = start // ROWS * ROWS
    end = tl.cdiv(seq, ROWS) * ROWS
    whole = tl.minimum(tl.cdiv(start + COLUMNS, ROWS) * ROWS, end)
    partial = end
    last = tl.zeros([COLUMNS], tl.int32)
    if HAS_DOCUMENTS:
        last = tl.load(last_ptr + top + columns, is_column, other=0)
        last_of_all = tl.load(last_ptr + top + tl.minimum(start + COLUMNS, seq) - 1)
        end = tl.cdiv(last_of_all + 1, ROWS) * ROWS
        whole = tl.minimum(whole, end)
        partial = (tl.load(last_ptr + top + start) + 1) // ROWS * ROWS
        partial = tl.maximum(partial, whole)

    v = v_desc.load([top + start, pair * 2 * HEAD_DIM])
    dv = tl.zeros([COLUMNS, 2 * HEAD_DIM], tl.float32)
    tokens = (top.to(tl.int64) + columns)[:, None]
    for is_noise in tl.static_range(2):
        k_head = 2 * pair + is_noise
        k = k_desc.load([top + start, k_head * HEAD_DIM])
        dk = tl.zeros([COLUMNS, HEAD_DIM], tl.float32)
        for is_masked in tl.static_range(2):
            masked_blocks = (whole - begin + end - partial) // ROWS
            dk, dv = _meet_queries(
                dk,
                dv,
                k,
                v,
                q_desc,
                dnoise_desc if is_noise else dout_desc,
                logsumexp_ptr,
                delta_ptr,
                top,
                seq,
                group,
                columns,
                last,
                begin if is_masked else whole,
                (whole - begin) // ROWS,
                partial - whole,
                masked_blocks if is_masked else (partial - whole) // ROWS,
                groups_per_pair if is_noise else groups_per_pair * RATIO,
                scale,
                RATIO,
                is_noise,
                is_masked,
                HAS_DOCUMENTS,
                WRITES_DK,
                WRITES_DV,
                ROWS,
                HEAD_DIM,
            )
        if WRITES_DK:
            dims = tl.arange(0, HEAD_DIM)[None, :]
            result = (dk * inverse_root).to(dk_ptr.dtype.element_ty)
            offsets = (tokens * (2 * num_pairs) + k_head) * HEAD_DIM + dims
            tl.store(dk_ptr + offsets, result, is_column[:, None])
    if WRITES_DV:
        dims = tl.arange(0, 2 * HEAD_DIM)[None, :]
        offsets = (tokens * num_pairs + pair) * (2 * HEAD_DIM) + dims
        tl.store(dv_ptr + offsets, dv.to(dv_ptr.dtype.element_ty), is_column[:, None])


@triton.jit
def _meet_keys(
    dq,  # (ROWS, HEAD_DIM)
    q,  # (ROWS, HEAD_DIM)
    dmap,  # (ROWS, 2 * HEAD_DIM)
    logsumexp,  # (ROWS,)
    delta,  # (ROWS,)
    k_desc,
    v_desc,
    top,
    k_column,
    v_column,
    rows,  # (ROWS,)
    first,  # (ROWS,)
    begin,  # the blocks of keys [begin, begin + gap_at * COLUMNS) and those after a gap
    gap_at,
    gap,
    num_blocks,
    scale,
    IS_MASKED: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add what blocks of keys contribute to the gradient of a block of queries."""
    for index in range(num_blocks):
        column = begin + index * COLUMNS
        if IS_MASKED:
            column += tl.where(index >= gap_at, gap, 0)
        k = k_desc.load([top + column, k_column])
        weights = tl.math.exp2(tl.dot(q, k.T) * scale - logsumexp[:, None])
        if IS_MASKED:
            columns = column + tl.arange(0, COLUMNS)[None, :]
            allowed = columns <= rows[:, None]
            if HAS_DOCUMENTS:
                allowed &= columns >= first[:, None]
            weights = tl.where(allowed, weights, 0.0)
        v = v_desc.load([top + column, v_column])
        dlogits = weights * (tl.dot(dmap, v.T) - delta[:, None])
        dq = tl.dot(dlogits.to(k.dtype), k, dq)
    return dq


@triton.jit
def _attention_queries_kernel(
    q_desc,  # (batch * seq, heads * HEAD_DIM)
    k_desc,  # (batch * seq, 2 * pairs * HEAD_DIM)
    v_desc,  # (batch * seq, pairs * 2 * HEAD_DIM)
    dmap_desc,  # (batch * seq, groups * (RATIO or 1) * 2 * HEAD_DIM)
    first_ptr,  # (batch, seq)
    logsumexp_ptr,  # (batch, heads, seq)
    delta_ptr,  # (batch, heads, seq)
    dq_ptr,  # (batch, seq, heads, HEAD_DIM)
    seq,
    num_pairs,
    groups_per_pair,
    scale,
    inverse_root,  # 1 / sqrt(d)
    RATIO: tl.constexpr,
    IS_NOISE: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at = place_of(seq, num_pairs, groups_per_pair, RATIO, IS_NOISE, ROWS)
    batch, pair, head, map_head, start = at
    rows = start + tl.arange(0, ROWS)
    is_row = rows < seq
    top = batch * seq
    num_heads = num_pairs * groups_per_pair * (RATIO + 1)
    k_column = (2 * pair + (1 if IS_NOISE else 0)) * HEAD_DIM
    v_column = pair * 2 * HEAD_DIM
    begin, whole, diagonal, end, first = key_range(
        first_ptr + top, start, rows, seq, HAS_DOCUMENTS, ROWS, COLUMNS
    )

    statistics = (batch.to(tl.int64) * num_heads + head) * seq + rows
    logsumexp = tl.load(logsumexp_ptr + statistics, is_row, other=float("inf"))
    delta = tl.load(delta_ptr + statistics, is_row, other=0.0)
    q = q_desc.load([top + start, head * HEAD_DIM])
    dmap = dmap_desc.load([top + start, map_head * (2 * HEAD_DIM)])
    dq = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for is_masked in tl.static_range(2):
        masked_blocks = (whole - begin) // COLUMNS + tl.cdiv(end - diagonal, COLUMNS)
        dq = _meet_keys(
            dq,
            q,
            dmap,
            logsumexp,
            delta,
            k_desc,
            v_desc,
            top,
            k_column,
            v_column,
            rows,
            first,
            begin if is_masked else whole,
            (whole - begin) // COLUMNS,
            diagonal - whole,
            masked_blocks if is_masked else (diagonal - whole) // COLUMNS,
            scale,
            is_masked,
            HAS_DOCUMENTS,
            COLUMNS,
        )
    tokens = (top.to(tl.int64) + rows)[:, None]
    offsets = (tokens * num_heads + head) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    result = (dq * inverse_root).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + offsets, result, is_row[:, None])


_PREPARED_ROWS = 16
"""Rows of a program of `_attention_prepare_kernel`."""


def keys_tiles(x: Tensor, writes_dk: bool) -> Tiles:
    """Return the keys' kernel's tiles: 128 keys, or two warp groups would repeat each other."""
    if not is_hopper(x):
        return Tiles(rows=32, columns=64, num_warps=8 if x.shape[-1] > 64 else 4, num_stages=2)
    # Without dK there is shared memory for a third stage: 2.07 ms for 2.25 at batch 4 x 4096.
    return Tiles(rows=64, columns=128, num_warps=8, num_stages=2 if writes_dk else 3)


def queries_tiles(x: Tensor) -> Tiles:
    """Return the queries' kernel's tiles."""
    if not is_hopper(x):
        return Tiles(rows=64, columns=32, num_warps=8 if x.shape[-1] > 64 else 4, num_stages=2)
    return Tiles(rows=128, columns=64, num_warps=8, num_stages=2)


def are_keys_split(head_dim: int) -> bool:
    """Return whether dK and dV take a pass each: at 128, both sums do not fit the registers."""
    return head_dim > 64


def launch_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    documents: Documents | None,
    out: Tensor,
    noise: Tensor,
    logsumexp: Tensor,
    ratio: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and lam; all tensors are contiguous."""
    shape = Shape.of(q, k, ratio)
    with torch.cuda.device_of(q):
        dnoise, delta, dlam = _prepare(dout, out, noise, lam, logsumexp, shape)
        maps = (dout, dnoise)
        dq = _launch_queries(q, k, v, maps, documents, logsumexp, delta, shape)
        dk, dv = _launch_keys(q, k, v, maps, documents, logsumexp, delta, shape)
    return dq, dk, dv, dlam


def _prepare(
    dout: Tensor, out: Tensor, noise: Tensor, lam: Tensor, logsumexp: Tensor, shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the noise maps, delta (batch, heads, seq) and the gradient of lam."""
    blocks = triton.cdiv(shape.seq, _PREPARED_ROWS)
    dnoise, delta = torch.empty_like(noise), torch.empty_like(logsumexp)
    dlam = logsumexp.new_empty(shape.batch * blocks * shape.num_groups)
    _attention_prepare_kernel[(len(dlam),)](
        dout,
        out,
        noise,
        lam,
        dnoise,
        delta,
        dlam,
        shape.seq,
        shape.num_groups,
        RATIO=shape.ratio,
        WIDTH=2 * shape.head_dim,
        ROWS=_PREPARED_ROWS,
        num_warps=4,
    )
    return dnoise, delta, dlam.sum()


def _launch_queries(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    maps: tuple[Tensor, Tensor],
    documents: Documents | None,
    logsumexp: Tensor,
    delta: Tensor,
    shape: Shape,
) -> Tensor:
    tiles, dim = queries_tiles(q), shape.head_dim
    blocks = triton.cdiv(shape.seq, tiles.rows)
    dq = torch.empty_like(q)
    for is_noise, dmap in enumerate(maps):
        heads = shape.num_groups if is_noise else shape.num_signal_heads
        _attention_queries_kernel[(shape.batch * heads * blocks,)](
            descriptor(q, tiles.rows, dim),
            descriptor(k, tiles.columns, dim),
            descriptor(v, tiles.columns, 2 * dim),
            descriptor(dmap, tiles.rows, 2 * dim),
            q if documents is None else documents.first,
            logsumexp,
            delta,
            dq,
            shape.seq,
            shape.num_pairs,
            shape.groups_per_pair,
            shape.scale,
            dim**-0.5,
            RATIO=shape.ratio,
            IS_NOISE=bool(is_noise),
            HAS_DOCUMENTS=documents is not None,
            HEAD_DIM=dim,
            ROWS=tiles.rows,
            COLUMNS=tiles.columns,
            **tiles.options,
        )
    return dq


def _launch_keys(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    maps: tuple[Tensor, Tensor],
    documents: Documents | None,
    logsumexp: Tensor,
    delta: Tensor,
    shape: Shape,
) -> tuple[Tensor, Tensor]:
    dim = shape.head_dim
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    passes = ((True, False), (False, True)) if are_keys_split(dim) else ((True, True),)
    for writes_dk, writes_dv in passes:
        tiles = keys_tiles(q, writes_dk)
        _attention_keys_kernel[
            (shape.batch * shape.num_pairs * triton.cdiv(shape.seq, tiles.columns),)
        ](
            descriptor(q, tiles.rows, dim),
            descriptor(k, tiles.columns, dim),
            descriptor(v, tiles.columns, 2 * dim),
            *(descriptor(dmap, tiles.rows, 2 * dim) for dmap in maps),
            q if documents is None else documents.last,
            logsumexp,
            delta,
            dk,
            dv,
            shape.seq,
            shape.num_pairs,
            shape.groups_per_pair,
            shape.scale,
            dim**-0.5,
            RATIO=shape.ratio,
            HAS_DOCUMENTS=documents is not None,
            WRITES_DK=writes_dk,
            WRITES_DV=writes_dv,
            HEAD_DIM=dim,
            ROWS=tiles.rows,
            COLUMNS=tiles.columns,
            **tiles.options,
        )
    return dk, dv
