"""Causal attention of a Motif block, grouped differential or plain: which path runs, and operators.

The differential form is one Triton kernel for each direction's parts where a GPU has them
(attention_forward.py, attention_backward.py), and SDPA elsewhere (attention_reference.py).
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from titan_motif.kernels import attention_reference as reference
from titan_motif.kernels.attention_backward import launch_backward
from titan_motif.kernels.attention_forward import Shape, launch_forward
from titan_motif.kernels.documents import Documents, allowed_keys, documents_of
from titan_motif.kernels.largest_logits import largest_logits
from titan_motif.kernels.launch import IS_INTERPRETED

AttentionImplementation = Literal["auto", "triton", "sdpa"]
"""'auto': the faster one (see `fastest_attention`). 'triton' and 'sdpa': that path, or a ValueError
where Triton does not serve (see `attention_problem`)."""

HEAD_DIMS = (16, 32, 64, 128)
"""Widths of a head that the Triton kernels take."""
_DTYPES = (torch.bfloat16, torch.float16)


class AttentionStatistics(NamedTuple):
    """What a call saw, over its whole batch; no gradients."""

    max_logits: Tensor
    """(heads,) float32: each head's largest logit, scaled by 1 / sqrt(head_dim)."""
    noise_over_signal: Tensor
    """() float32: norm of lam times the noise maps' outputs over that of the signal maps'."""


def attention_problem(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    """Return why the Triton kernels of differential attention do not serve, or None."""
    is_interpreted = device.type == "cpu" and IS_INTERPRETED
    if device.type != "cuda" and not is_interpreted:
        return f"a tensor on {device.type} needs 'sdpa'"
    if device.type == "cuda" and torch.version.hip is not None:
        return "the kernels were made for NVIDIA's GPUs"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "a GPU of compute capability 8.0 or later is needed"
    if dtype not in _DTYPES:
        return f"{dtype} is not served, only bfloat16 and float16"
    if head_dim not in HEAD_DIMS:
        return f"head_dim is {head_dim}; one of {', '.join(map(str, HEAD_DIMS))} is needed"
    if is_interpreted and dtype == torch.bfloat16:
        return "Triton's interpreter multiplies no bfloat16"
    return None


def fastest_attention(
    dtype: torch.dtype, head_dim: int, device: torch.device
) -> Literal["triton", "sdpa"]:
    """Return what 'auto' means on a device."""
    if device.type != "cuda" or attention_problem(dtype, head_dim, device) is not None:
        return "sdpa"
    return fastest_attention_on(torch.cuda.get_device_capability(device), dtype, head_dim)


def fastest_attention_on(
    compute_capability: tuple[int, int], dtype: torch.dtype, head_dim: int
) -> Literal["triton", "sdpa"]:
    """Return what 'auto' means on NVIDIA's GPUs of a compute capability, present or not.

    Triton on Hopper, the one chip on which it was measured: there it was faster at every length,
    dense and packed (docs/attention.md).
    """
    serves = dtype in _DTYPES and head_dim in HEAD_DIMS
    return "triton" if serves and compute_capability[0] == 9 else "sdpa"


def grouped_differential_attention(
    q: Tensor,  # (batch, seq, heads, head_dim): per group `ratio` signal heads, then a noise head
    k: Tensor,  # (batch, seq, 2 * pairs, head_dim): even heads serve signal, odd heads noise
    v: Tensor,  # (batch, seq, 2 * pairs, head_dim): two neighbours form one value, 2 * head_dim
    lam: Tensor,  # scalar
    ratio: int,
    document_ids: Tensor | Documents | None = None,  # (batch, seq) integers
    *,
    with_statistics: bool = False,
    exact_above: float = -math.inf,
    implementation: AttentionImplementation = "auto",
) -> Any:  # (batch, seq, signal heads, 2 * head_dim); with statistics, a pair
    """Causal attention maps of the signal heads minus lam times their group's noise map.

    Equation: O_s = softmax(q1_s k1_g^T / sqrt(d)) V_g - lam softmax(q2_g k2_g^T / sqrt(d)) V_g,
              V_g = concat(v1_g, v2_g), g the group of signal head s
              (Motif 2 12.7B technical report, https://arxiv.org/abs/2511.07464)
    Args:
        document_ids:    tokens attend within their run of equal ids; None: one document. Bounds
                         that serve several layers: `documents_of(document_ids)`
        with_statistics: return (output, AttentionStatistics)
        exact_above:     SDPA tells upper bounds of the largest logits, within log(seq): those above
                         this are replaced by the exact ones. The Triton kernels' are all exact.
    Raises:   ValueError if the heads do not form whole groups, the groups do not share pairs, or
              the chosen implementation does not serve; for shapes and dtypes that do not fit
    """
    _check(q, k, v, lam, ratio)
    documents = _documents(document_ids, q)
    if _runs_triton(q, implementation):
        first, last = (None, None) if documents is None else documents
        out, _, _, max_logits, squares = _differential_attention(q, k, v, lam, first, last, ratio)
        if not with_statistics:
            return out
        signal, noise = squares.sqrt().unbind()
        return out, AttentionStatistics(max_logits, _ratio(noise, signal))
    out, signal, noise, bounds = reference.grouped_differential_attention(
        q, k, v, lam, ratio, _mask(documents), with_bounds=with_statistics
    )
    if not with_statistics:
        return out
    wide = torch.promote_types(q.dtype, torch.float32)
    norms = [torch.linalg.vector_norm(x.detach(), dtype=wide).float() for x in (noise, signal)]
    max_logits = _exact(q, k, documents, bounds, ratio, exact_above)
    return out, AttentionStatistics(max_logits, _ratio(*norms))


def attention(
    q: Tensor,  # (batch, seq, heads, head_dim)
    k: Tensor,  # (batch, seq, fewer or as many heads, head_dim)
    v: Tensor,  # like k
    document_ids: Tensor | Documents | None = None,
    *,
    with_statistics: bool = False,
    exact_above: float = -math.inf,
) -> Any:  # like q; with statistics, a pair
    """Plain causal attention by SDPA; arguments as of `grouped_differential_attention`."""
    _check_alike(q, k, v)
    documents = _documents(document_ids, q)
    out, bounds = reference.attention(q, k, v, _mask(documents), with_bounds=with_statistics)
    if not with_statistics:
        return out
    max_logits = _exact(q, k, documents, bounds, 0, exact_above)
    return out, AttentionStatistics(max_logits, max_logits.new_zeros(()))


def _check(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, ratio: int) -> None:
    """Raise ValueError for what the kernels would read as something else."""
    if ratio < 1:
        raise ValueError(f"ratio is {ratio}; at least 1 is needed (0 is `attention`)")
    num_heads, groups = q.shape[2], q.shape[2] // (ratio + 1)
    num_pairs = k.shape[2] // 2
    if num_heads != groups * (ratio + 1) or k.shape[2] % 2 or groups % max(num_pairs, 1):
        raise ValueError(
            f"{num_heads} query heads at ratio {ratio} with {k.shape[2]} key heads: heads must be "
            f"a multiple of ratio + 1, and their groups a multiple of the key pairs"
        )
    if num_pairs == 0:
        raise ValueError("there are no key heads; a pair is needed")
    if lam.ndim:
        raise ValueError(f"lam has the shape {tuple(lam.shape)}; a scalar is needed")
    _check_alike(q, k, v)


def _check_alike(q: Tensor, k: Tensor, v: Tensor) -> None:
    if (q.shape[:2], q.shape[3]) != (k.shape[:2], k.shape[3]):
        raise ValueError(
            f"q has the shape {tuple(q.shape)}, k {tuple(k.shape)}; only their heads may differ"
        )
    if v.shape != k.shape:
        raise ValueError(f"v has the shape {tuple(v.shape)}; k's, {tuple(k.shape)}, is needed")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v are {q.dtype}, {k.dtype}, {v.dtype}; one dtype is needed")


def _documents(document_ids: Tensor | Documents | None, q: Tensor) -> Documents | None:
    is_given = isinstance(document_ids, Tensor)
    documents = documents_of(document_ids) if is_given else document_ids
    if documents is not None and documents.first.shape != q.shape[:2]:
        raise ValueError(
            f"document_ids have the shape {tuple(documents.first.shape)}; that of the tokens, "
            f"{tuple(q.shape[:2])}, is needed"
        )
    return documents


def _mask(documents: Documents | None) -> Tensor | None:
    return None if documents is None else allowed_keys(documents)


def _runs_triton(q: Tensor, implementation: str) -> bool:
    if implementation not in get_args(AttentionImplementation):
        allowed = ", ".join(map(repr, get_args(AttentionImplementation)))
        raise ValueError(f"implementation is {implementation!r}; one of {allowed} is needed")
    if implementation == "auto":
        implementation = fastest_attention(q.dtype, q.shape[-1], q.device)
    if implementation == "sdpa":
        return False
    problem = attention_problem(q.dtype, q.shape[-1], q.device)
    if problem is not None:
        raise ValueError(f"implementation is 'triton'; {problem}")
    return q.numel() > 0


def _exact(
    q: Tensor,
    k: Tensor,
    documents: Documents | None,
    bounds: Tensor,
    ratio: int,
    exact_above: float,
) -> Tensor:
    first = None if documents is None else documents.first
    return largest_logits(q.detach(), k.detach(), first, bounds, ratio, exact_above)


def _ratio(noise_norm: Tensor, signal_norm: Tensor) -> Tensor:
    return noise_norm / signal_norm.clamp_min(torch.finfo(torch.float32).tiny)


# ---- operators


def _aligned(x: Tensor) -> Tensor:
    """Return x contiguous, from an address that descriptors can name."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


@torch.library.custom_op("titan_motif::differential_attention", mutates_args=())
def _differential_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    first: Tensor | None,
    last: Tensor | None,
    ratio: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    documents = None if first is None else Documents(first.contiguous(), last.contiguous())
    q, k, v = (_aligned(x) for x in (q, k, v))
    return launch_forward(q, k, v, lam.float(), documents, ratio)


@_differential_attention.register_fake
def _(q, k, v, lam, first, last, ratio):
    shape = Shape.of(q, k, ratio)
    width = 2 * shape.head_dim
    return (
        q.new_empty(shape.batch, shape.seq, shape.num_signal_heads, width),
        q.new_empty(shape.batch, shape.seq, shape.num_groups, width),
        q.new_empty(shape.batch, shape.num_heads, shape.seq, dtype=torch.float32),
        q.new_empty(shape.num_heads, dtype=torch.float32),
        q.new_empty(2, dtype=torch.float32),
    )


@torch.library.custom_op("titan_motif::differential_attention_backward", mutates_args=())
def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    first: Tensor | None,
    last: Tensor | None,
    out: Tensor,
    noise: Tensor,
    logsumexp: Tensor,
    ratio: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    documents = None if first is None else Documents(first.contiguous(), last.contiguous())
    dout, q, k, v = (_aligned(x) for x in (dout, q, k, v))
    dq, dk, dv, dlam = launch_backward(
        dout, q, k, v, lam.float(), documents, out, noise, logsumexp, ratio
    )
    return dq, dk, dv, dlam.to(lam.dtype)


@_backward.register_fake
def _(dout, q, k, v, lam, first, last, out, noise, logsumexp, ratio):
    contiguous = {"memory_format": torch.contiguous_format}
    like = [torch.empty_like(x, **contiguous) for x in (q, k, v)]
    return *like, torch.empty_like(lam)


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, lam, first, last, ratio = inputs
    out, noise, logsumexp, max_logits, squares = output
    ctx.mark_non_differentiable(noise, logsumexp, max_logits, squares)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, lam, first, last, out, noise, logsumexp)
    ctx.ratio = ratio


def _autograd(ctx, dout, *others):
    if dout is None:
        return (None,) * 7
    gradients = _backward(dout, *ctx.saved_tensors, ctx.ratio)
    return *gradients, None, None, None


_differential_attention.register_autograd(_autograd, setup_context=_setup_context)
