"""Forward pass of grouped differential attention in Triton: online softmax, causal and documents.

One program attends with a block of queries of one head. The noise heads go first; a signal head's
program then subtracts lam times its group's noise map from its own before anything is stored. V is
read at its full width of two value heads, once for each query head.

A block of queries or keys at the end of a sequence reads the next sequence's first rows with a
weight of zero: values there that are not finite would reach it.

    m, l    running maximum and sum of a row of exp2(logits * scale)
    logsumexp, in base 2: m * scale + log2(l), with scale = log2(e) / sqrt(head_dim)
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from titan_motif.kernels.documents import Documents

LOG2_E = 1.4426950408889634

BEFORE_ANY = tl.constexpr(-1.0e30)
"""The running maximum of a row that has met no allowed key: finite, so that logits of -inf, which
are not allowed, stay -inf when it is taken off, however the compiler rounds, and weigh nothing."""


class Shape(NamedTuple):
    """The sizes of one call."""

    batch: int
    seq: int
    num_heads: int
    num_pairs: int
    head_dim: int
    ratio: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, ratio: int) -> "Shape":
        """Return the sizes of queries and keys (batch, seq, heads, head_dim)."""
        batch, seq, num_heads, head_dim = q.shape
        return cls(batch, seq, num_heads, k.shape[2] // 2, head_dim, ratio)

    @property
    def num_groups(self) -> int:
        """Of `ratio` signal heads and one noise head."""
        return self.num_heads // (self.ratio + 1)

    @property
    def num_signal_heads(self) -> int:
        """Of all groups."""
        return self.num_groups * self.ratio

    @property
    def groups_per_pair(self) -> int:
        """Groups of query heads that share a pair of key heads."""
        return self.num_groups // self.num_pairs

    @property
    def scale(self) -> float:
        """Of logits, for exp2."""
        return LOG2_E * self.head_dim**-0.5


SECTIONS_AT_A_TIME = tl.constexpr(8)
"""Of pairs in a sequence: their programs begin together, the longest first. Fewer would end with
long programs that run alone, more would share less of what the cache holds."""


@triton.jit
def section_of(num_blocks, num_places):
    """Return section, how many programs of it go before, and place of this program.

    A section has num_blocks * num_places programs, of which the first ones have the most to do.
    """
    size = num_blocks * num_places
    number = tl.program_id(0)
    first = number // (size * SECTIONS_AT_A_TIME) * SECTIONS_AT_A_TIME
    sections = tl.minimum(tl.num_programs(0) // size - first, SECTIONS_AT_A_TIME)
    number -= first * size
    place = number % num_places
    section = first + number // num_places % sections
    return section, number // (num_places * sections), place


@triton.jit
def place_of(
    seq,
    num_pairs,
    groups_per_pair,
    RATIO: tl.constexpr,
    IS_NOISE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Return what a program with a block of queries has to do: batch, pair, query head, that
    head's number among the signal or the noise heads, and the first query.
    """
    heads_here = groups_per_pair * (1 if IS_NOISE else RATIO)
    num_blocks = tl.cdiv(seq, ROWS)
    section, before, place = section_of(num_blocks, heads_here)
    block = num_blocks - 1 - before  # the last queries meet the most keys
    pair = section % num_pairs
    batch = section // num_pairs
    map_head = pair * heads_here + place
    if IS_NOISE:
        head = map_head * (RATIO + 1) + RATIO
    else:
        head = map_head // RATIO * (RATIO + 1) + map_head % RATIO
    return batch, pair, head, map_head, block * ROWS


@triton.jit
def key_range(
    first_ptr,  # of the sequence
    start,
    rows,  # (ROWS,)
    seq,
    HAS_DOCUMENTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return begin, whole, diagonal, end, and each row's first key.

    A block of queries meets the keys [begin, end); it needs no mask for [whole, diagonal). The
    middle two and the first are multiples of COLUMNS.
    """
    diagonal = start // COLUMNS * COLUMNS
    end = tl.minimum(start + ROWS, seq)
    begin = 0
    whole = 0
    first = tl.zeros([ROWS], tl.int32)
    if HAS_DOCUMENTS:
        first = tl.load(first_ptr + rows, rows < seq, other=0)
        begin = tl.load(first_ptr + start) // COLUMNS * COLUMNS
        last_first = tl.load(first_ptr + end - 1)
        whole = tl.minimum(tl.cdiv(last_first, COLUMNS) * COLUMNS, diagonal)
    return begin, whole, diagonal, end, first


@triton.jit
def _attend(
    accumulated,  # (ROWS, 2 * HEAD_DIM)
    total,  # (ROWS,)
    largest,  # (ROWS,)
    q,  # (ROWS, HEAD_DIM)
    k_desc,
    v_desc,
    top,  # row of the sequence's first token in the descriptors
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
    """Let a block of queries attend to blocks of keys."""
    for index in range(num_blocks):
        column = begin + index * COLUMNS
        if IS_MASKED:
            column += tl.where(index >= gap_at, gap, 0)
        k = k_desc.load([top + column, k_column])
        logits = tl.dot(q, k.T)
        if IS_MASKED:
            columns = column + tl.arange(0, COLUMNS)[None, :]
            allowed = columns <= rows[:, None]
            if HAS_DOCUMENTS:
                allowed &= columns >= first[:, None]
            logits = tl.where(allowed, logits, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.math.exp2(logits * scale - (larger * scale)[:, None])
        shrink = tl.math.exp2((largest - larger) * scale)
        total = total * shrink + tl.sum(weights, 1)
        accumulated = accumulated * shrink[:, None]
        v = v_desc.load([top + column, v_column])
        accumulated = tl.dot(weights.to(v.dtype), v, accumulated)
        largest = larger
    return accumulated, total, largest


@triton.jit
def _attention_forward_kernel(
    q_desc,  # (batch * seq, heads * HEAD_DIM)
    k_desc,  # (batch * seq, 2 * pairs * HEAD_DIM)
    v_desc,  # (batch * seq, pairs * 2 * HEAD_DIM)
    first_ptr,  # (batch, seq)
    lam_ptr,  # ()
    noise_ptr,  # (batch, seq, groups, 2 * HEAD_DIM): written by noise heads, read by signal heads
    out_ptr,  # (batch, seq, signal heads, 2 * HEAD_DIM)
    logsumexp_ptr,  # (batch, heads, seq), in base 2
    largest_ptr,  # (batch, heads, blocks): largest logit, without its scale
    square_ptr,  # (2, batch, signal heads, blocks): sums of squares of the two maps
    seq,
    num_pairs,
    groups_per_pair,
    scale,
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
    top = batch * seq
    k_column = (2 * pair + (1 if IS_NOISE else 0)) * HEAD_DIM
    v_column = pair * 2 * HEAD_DIM
    begin, whole, diagonal, end, first = key_range(
        first_ptr + top, start, rows, seq, HAS_DOCUMENTS, ROWS, COLUMNS
    )

    q = q_desc.load([top + start, head * HEAD_DIM])
    accumulated = tl.zeros([ROWS, 2 * HEAD_DIM], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    largest = tl.full([ROWS], BEFORE_ANY, tl.float32)
    for is_masked in tl.static_range(2):
        masked_blocks = (whole - begin) // COLUMNS + tl.cdiv(end - diagonal, COLUMNS)
        accumulated, total, largest = _attend(
            accumulated,
            total,
            largest,
            q,
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

    is_row = rows < seq
    num_groups = num_pairs * groups_per_pair
    num_heads = num_groups * (RATIO + 1)
    num_blocks = tl.cdiv(seq, ROWS)
    statistic = (batch * num_heads + head) * num_blocks + start // ROWS
    tl.store(largest_ptr + statistic, tl.max(tl.where(is_row, largest, BEFORE_ANY)))
    offsets = (batch.to(tl.int64) * num_heads + head) * seq + rows
    tl.store(logsumexp_ptr + offsets, largest * scale + tl.math.log2(total), is_row)
    inverse = tl.where(is_row, 1.0 / total, 0.0)
    dims = tl.arange(0, 2 * HEAD_DIM)[None, :]
    tokens = (top.to(tl.int64) + rows)[:, None]
    if IS_NOISE:
        offsets = (tokens * num_groups + map_head) * (2 * HEAD_DIM) + dims
        result = (accumulated * inverse[:, None]).to(noise_ptr.dtype.element_ty)
        tl.store(noise_ptr + offsets, result, is_row[:, None])
    else:
        squares = tl.sum(accumulated * accumulated, 1) * inverse * inverse
        square = (batch * num_groups * RATIO + map_head) * num_blocks + start // ROWS
        tl.store(square_ptr + square, tl.sum(squares))
        offsets = (tokens * num_groups + map_head // RATIO) * (2 * HEAD_DIM) + dims
        noise = tl.load(noise_ptr + offsets, is_row[:, None], other=0.0).to(tl.float32)
        noise *= tl.load(lam_ptr)
        tl.store(square_ptr + tl.num_programs(0) + square, tl.sum(tl.sum(noise * noise, 1)))
        offsets = (tokens * (num_groups * RATIO) + map_head) * (2 * HEAD_DIM) + dims
        result = (accumulated * inverse[:, None] - noise).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + offsets, result, is_row[:, None])


class Tiles(NamedTuple):
    """How a kernel cuts queries (rows) and keys (columns)."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """The launch options."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def forward_tiles(x: Tensor) -> Tiles:
    """Return the tiles of the forward kernel on x (..., head_dim)."""
    head_dim = x.shape[-1]
    if not is_hopper(x):
        return Tiles(rows=64, columns=32, num_warps=8 if head_dim > 64 else 4, num_stages=2)
    # Two programs a multiprocessor: one multiplies while the other takes its softmax.
    return Tiles(rows=64, columns=64, num_warps=4, num_stages=2)


def is_hopper(x: Tensor) -> bool:
    """Return whether tiles may be as large as Hopper's shared memory and warp groups want them."""
    return not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (9, 0)


def descriptor(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Return a descriptor of x (batch, seq, ...) as a matrix of tokens, in boxes."""
    return TensorDescriptor.from_tensor(x.view(x.shape[0] * x.shape[1], -1), [rows, columns])


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    documents: Documents | None,
    ratio: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return out, noise maps, logsumexp (base 2), largest logits and squares of both maps.

    Shapes: contiguous q, k, v -> (batch, seq, signal heads, 2 * head_dim), (batch, seq, groups,
            2 * head_dim), (batch, heads, seq), (heads,), (2,)
    """
    shape = Shape.of(q, k, ratio)
    batch, seq, num_heads, _, head_dim, _ = shape
    tiles = forward_tiles(q)
    blocks = triton.cdiv(seq, tiles.rows)
    out = q.new_empty(batch, seq, shape.num_signal_heads, 2 * head_dim)
    noise = q.new_empty(batch, seq, shape.num_groups, 2 * head_dim)
    float32 = {"dtype": torch.float32}
    logsumexp = q.new_empty(batch, num_heads, seq, **float32)
    largest = q.new_empty(batch, num_heads, blocks, **float32)
    squares = q.new_empty(2, batch * shape.num_signal_heads * blocks, **float32)
    arguments = (
        descriptor(q, tiles.rows, head_dim),
        descriptor(k, tiles.columns, head_dim),
        descriptor(v, tiles.columns, 2 * head_dim),
        q if documents is None else documents.first,
        lam,
        noise,
        out,
        logsumexp,
        largest,
        squares,
        seq,
        shape.num_pairs,
        shape.groups_per_pair,
        shape.scale,
    )
    with torch.cuda.device_of(q):
        for is_noise, heads in ((True, shape.num_groups), (False, shape.num_signal_heads)):
            _attention_forward_kernel[(batch * heads * blocks,)](
                *arguments,
                RATIO=ratio,
                IS_NOISE=is_noise,
                HAS_DOCUMENTS=documents is not None,
                HEAD_DIM=head_dim,
                ROWS=tiles.rows,
                COLUMNS=tiles.columns,
                **tiles.options,
            )
    return out, noise, logsumexp, largest.amax((0, 2)) * head_dim**-0.5, squares.sum(1)
