"""What a block keeps of every token for its backward pass, tensor by tensor.

Compare with titan_motif/model/model.py, attention.py and feed_forward.py, in whose order the rows
are, and with what the Triton operators save (kernels/). Compiled blocks keep the same: of what lies
between them the compiler's partitioner saves nothing that a matrix product, attention or a norm has
not saved, and where two rows differ by compiling, it is said.

Legend: D width of the residual stream, F of the feed-forward layer, H heads x head_dim of queries,
K of keys, S of the signal heads' outputs, N of the noise heads'.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from titan_motif.components.float8 import Recipe
from titan_motif.model import Motif2ModelArgs

Kept = Literal["all", "products", "op", "input"]
"""How much of a block is kept: all that its backward pass reads (no checkpointing), the results of
attention and of all products, of attention and every second product, or the block's input."""


@dataclass(frozen=True)
class BlockForm:
    """How blocks are run, as far as memory depends on it."""

    attention: Literal["triton", "sdpa"]
    is_compiled: bool
    tensor_parallel: int = 1
    element_bytes: int = 2
    """Of the dtype of the matrix products."""
    recipe: Recipe | None = None
    """Of FP8; None: products in the dtype of the activations."""


class Row(NamedTuple):
    """A tensor, and where it is kept."""

    name: str
    elements: int
    """For a token, of all tensor-parallel ranks together."""
    element_bytes: int
    is_cut: bool
    """By tensor parallelism: along the sequence, by heads, or by columns. Else whole on a rank."""
    kept: tuple[Kept, ...]


def block_rows(args: Motif2ModelArgs, form: BlockForm) -> list[Row]:
    """Return the tensors of a block, in the order in which they appear."""
    size, dim = form.element_bytes, args.dim
    # A weight's gradient in FP8 needs the input in FP8: compiled, that is all that is left of it.
    is_cast = form.is_compiled and form.recipe in ("rowwise", "tensorwise")
    linear_input = 1 if is_cast else size
    hidden, heads = args.hidden_dim, args.n_heads * args.head_dim
    keys = args.n_kv_heads * args.head_dim
    return [
        Row("block's input (D)", dim, size, True, ("all", "products", "op", "input")),
        Row("norm, the input of q, k, v (D)", dim, linear_input, False, ("all",)),
        Row("q of the product (H)", heads, size, True, ("products", "op")),
        Row("k of the product (K)", keys, size, True, ("products",)),
        Row("q, turned (H)", heads, size, True, ("all",)),
        Row("k, turned (K)", keys, size, True, ("all",)),
        Row("v (K)", keys, size, True, ("all", "products", "op")),
        *_attention_rows(args, form, linear_input),
        *_result_rows("attention", dim, form, ("products",)),
        Row("residual stream (D)", dim, size, True, ("all",)),
        Row("norm, the input of gate, up (D)", dim, linear_input, False, ("all",)),
        Row("gate (F)", hidden, size, True, ("all", "products", "op")),
        Row("up (F)", hidden, size, True, ("all", "products")),
        Row("PolyNorm's power sums", 3, 4, False, ("all",)),
        Row("PolyNorm(gate) up, the input of down (F)", hidden, linear_input, True, ("all",)),
        # Nothing reads it in the backward pass, which only the compiler sees.
        *([] if form.is_compiled else _result_rows("down", dim, form, ("products", "op"))),
    ]


def _attention_rows(args: Motif2ModelArgs, form: BlockForm, linear_input: int) -> list[Row]:
    size, everywhere = form.element_bytes, ("all", "products", "op")
    signal, noise = args.num_signal_heads * args.value_dim, args.num_groups * args.value_dim
    if args.grouped_ratio == 0:
        return [
            Row("attention, the input of o (S)", signal, size, True, everywhere),
            Row("log-sum-exp", args.n_heads, 4, True, everywhere),
        ]
    normed = Row("norm of the heads, the input of o (S)", signal, linear_input, True, ("all",))
    if form.attention == "triton":
        return [
            Row("signal less noise (S)", signal, size, True, everywhere),
            Row("noise maps (N)", noise, size, True, everywhere),
            Row("log-sum-exp", args.n_heads, 4, True, everywhere),
            normed,
        ]
    # Uncompiled, the signal heads' queries are a copy where the noise heads' lie between them, and
    # the noise maps are repeated for each signal head; compiled, they are joined and no more.
    copied = args.num_signal_heads * args.head_dim if args.grouped_ratio > 1 else 0
    between = (
        [Row("noise maps, joined (N)", noise, size, True, ("all",))]
        if form.is_compiled
        else [
            Row("q of the signal heads", copied, size, True, ("all",)),
            Row("noise maps, for each signal head (S)", signal, size, True, ("all",)),
        ]
    )
    return [
        Row("signal maps, two halves (S)", signal, size, True, everywhere),
        Row("noise maps, two halves (N)", noise, size, True, everywhere),
        Row("log-sum-exp of both halves", 2 * args.n_heads, 4, True, everywhere),
        *between,
        Row("signal less noise (S)", signal, size, True, ("all",)),
        normed,
    ]


def _result_rows(name: str, dim: int, form: BlockForm, kept: tuple[Kept, ...]) -> list[Row]:
    """Return the result of a product into the residual stream.

    Under tensor parallelism it is a sum over ranks: each one's part, and what it gets of the sum.
    """
    size, result = form.element_bytes, f"result of {name} (D)"
    if form.tensor_parallel == 1:
        return [Row(result, dim, size, True, kept)]
    rows = [Row(f"{result}, summed", dim, size, True, ("products", "op"))]
    part = Row(f"{result}, this rank's part", dim, size, False, kept)
    return rows if form.is_compiled else [part, *rows]


def kept_bytes(args: Motif2ModelArgs, form: BlockForm, kept: Kept) -> float:
    """Return the bytes for a token that a rank keeps of a block.

    A token is one of the tensor-parallel ranks' common micro-batch. What all blocks share (the
    angles' cosines and sines, bounds of documents) is left out.
    """
    return sum(
        row.elements * row.element_bytes / (form.tensor_parallel if row.is_cut else 1)
        for row in block_rows(args, form)
        if kept in row.kept
    )


def backward_bytes(args: Motif2ModelArgs, form: BlockForm) -> float:
    """Return the bytes for a token that a block's backward pass holds at most.

    All that is kept without checkpointing, since what was not kept is computed again first; then,
    where PolyNorm's gradients are made, the gradients of the block's output, of gate and of up, and
    of PolyNorm(gate) up in place of that itself. Later there is less: what is done with goes.
    """
    hidden = args.hidden_dim / form.tensor_parallel
    gradients = form.element_bytes * (args.dim + 2 * hidden)
    if form.recipe is not None and not form.is_compiled:
        # Casts of the widest tensor through float32, twice, and its gradient.
        gradients = max(gradients, 12 * hidden)
    return kept_bytes(args, form, "all") + gradients
