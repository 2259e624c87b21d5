"""The largest logit of every head: exact ones, SDPA's bounds, and which of them are returned."""

import importlib
import math

import pytest
import torch
from oracle import Launches, causal_logits, draw, packed_ids

from titan_motif import kernels
from titan_motif.kernels import documents_of, key_heads, largest_logits
from titan_motif.kernels.launch import IS_INTERPRETED

largest_logits_module = importlib.import_module("titan_motif.kernels.largest_logits")

# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
TRITON_DTYPES = [torch.float32, torch.float16] + ([] if IS_INTERPRETED else [torch.bfloat16])
DTYPES = [*TRITON_DTYPES, torch.float64]
"""float64 takes the PyTorch path everywhere."""
CASES = [
    # batch, seq, heads, key heads, ratio, head_dim
    (1, 1, 2, 2, 1, 16),
    (2, 65, 10, 4, 4, 48),
    (2, 130, 6, 2, 0, 8),
    (1, 129, 8, 2, 1, 32),
]
NATIVE_CASES = [(2, 1000, 10, 4, 4, 128), (1, 4100, 9, 2, 8, 128), (2, 700, 16, 8, 0, 64)]


@pytest.fixture(params=["cpu", "cuda"])
def any_device(request) -> str:
    """CPU, where PyTorch multiplies unless Triton is interpreted; and a GPU where there is one."""
    if request.param == "cuda" and (IS_INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("needs a CUDA device")
    return request.param


def heads_of(case, device: str, dtype, seed: int = 1):
    """Normal queries and keys."""
    batch, seq, num_heads, num_key_heads, _, head_dim = case
    q = draw(batch, seq, num_heads, head_dim, device=device, dtype=dtype, seed=seed)
    k = draw(batch, seq, num_key_heads, head_dim, device=device, dtype=dtype, seed=seed + 1)
    return q - 0.5, k - 0.5


def exactly(q, k, ratio: int, document_ids=None) -> torch.Tensor:
    return causal_logits(q.double(), k.double(), ratio, document_ids).amax((0, 2, 3))


def largest(q, k, ratio: int, document_ids=None, bounds=math.inf, exact_above=0.0):
    first = None if document_ids is None else documents_of(document_ids).first
    bounds = torch.as_tensor(bounds, dtype=torch.float32, device=q.device)
    return largest_logits(q, k, first, bounds.expand(q.shape[2]).clone(), ratio, exact_above)


def assert_close(found: torch.Tensor, exact: torch.Tensor, tolerance: float = 1e-6) -> None:
    assert found.dtype == torch.float32
    assert found.shape == exact.shape
    assert ((found.double() - exact).abs() <= tolerance * exact.abs()).all(), (found, exact)


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES + NATIVE_CASES, ids=str)
def test_maxima_are_exact(any_device, case, dtype, is_packed: bool):
    if any_device == "cpu" and case in NATIVE_CASES:
        pytest.skip("a shape for a GPU")
    batch, seq, _, _, ratio, _ = case
    q, k = heads_of(case, any_device, dtype)
    ids = packed_ids(batch, seq, any_device) if is_packed else None
    assert_close(largest(q, k, ratio, ids), exactly(q, k, ratio, ids))


def plant(q, k, pairs) -> None:
    """Give pairs of a query and a key of the first sequence large logits, by a dimension alone."""
    q[..., 0] = k[..., 0] = 0.0
    for query, key in pairs:
        q[0, query, :, 0] = k[0, key, :, 0] = 20.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_keys_that_may_not_be_seen_do_not_count(any_device, dtype):
    """All logits are negative but those with a later key and with one of another document.

    Nor do the zeros count that fill tiles beyond the sequence.
    """
    q, k = heads_of((2, 70, 4, 2, 3, 16), any_device, dtype)
    q, k = q.abs() + 0.1, -k.abs() - 0.1
    plant(q, k, [(5, 10), (40, 10)])
    ids = torch.zeros(2, 70, dtype=torch.long, device=any_device)
    ids[:, 20:] = 1
    found = largest(q, k, 3, ids)
    assert (found < 0).all()
    assert_close(found, exactly(q, k, 3, ids))
    assert (largest(q, k, 3) > 50).all()


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("query", [1000, 1500, 2099])
def test_sequences_longer_than_one_chunk(query: int, is_packed: bool):
    """float64 takes the PyTorch path, which goes through queries in chunks."""
    assert 1000 < largest_logits_module._CHUNK < 1500 < 2 * largest_logits_module._CHUNK < 2099
    q, k = heads_of((1, 2100, 2, 2, 1, 8), "cpu", torch.float64)
    plant(q, k, [(query, 900)])
    ids = None
    if is_packed:
        ids = (torch.arange(2100) > 950).long()[None]
    found = largest(q, k, 1, ids)
    assert_close(found, exactly(q, k, 1, ids))
    assert (found > 100).tolist() == [not is_packed] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_heads_that_are_looked_at(any_device, dtype):
    """A head whose bound is at or under the threshold keeps it, true or not."""
    q, k = heads_of((2, 33, 6, 2, 2, 16), any_device, dtype)
    exact = exactly(q, k, 2)
    bounds = [1.0, -3.0, 1.0 + 2**-20, 100.0, -math.inf, math.inf]
    found = largest(q, k, 2, bounds=bounds, exact_above=1.0)
    assert found[[0, 1, 4]].tolist() == [1.0, -3.0, -math.inf]
    looked_at = [2, 3, 5]
    assert_close(found[looked_at], exact[looked_at])
    assert_close(largest(q, k, 2, bounds=-3.0, exact_above=-math.inf), exact)
    assert largest(q, k, 2, bounds=bounds, exact_above=math.inf).tolist() == bounds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_bound_that_is_no_number_is_looked_at(any_device, dtype):
    q, k = heads_of((1, 9, 2, 2, 1, 16), any_device, dtype)
    found = largest(q, k, 1, bounds=[math.nan, 0.5], exact_above=1.0)
    assert found[1] == 0.5
    assert_close(found[:1], exactly(q, k, 1)[:1])


def test_views_are_read_as_they_lie(any_device):
    q, k = heads_of((2, 40, 4, 2, 1, 16), any_device, torch.float32)
    together = torch.cat((q, k), dim=2).transpose(1, 2).contiguous().transpose(1, 2)
    parts = together[:, :, :4], together[:, :, 4:]
    assert not any(part.is_contiguous() for part in parts)
    assert torch.equal(largest(*parts, 1), largest(q, k, 1))


def test_the_kernel_is_launched(device, monkeypatch):
    kernel = Launches(monkeypatch, largest_logits_module, "_largest_logits_kernel")
    q, k = heads_of((1, 9, 2, 2, 1, 16), device, torch.float16)
    largest(q, k, 1)
    assert kernel.count == 1
    largest(q.double(), k.double(), 1)
    assert kernel.count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_operator_passes_opcheck(any_device, dtype):
    q, k = heads_of((2, 9, 4, 2, 1, 16), any_device, dtype)
    bounds = torch.tensor([0.0, 9.0, 9.0, 0.0], device=any_device)
    first = documents_of(packed_ids(2, 9, any_device)).first
    for given in (None, first):
        arguments = (q, k, given, bounds, 1, 1.0)
        torch.library.opcheck(torch.ops.titan_motif.largest_logits, arguments)


def test_no_tokens_keep_the_bounds(any_device):
    q, k = heads_of((0, 9, 4, 2, 1, 16), any_device, torch.float32)
    assert largest(q, k, 1, bounds=[1.0, 2.0, 3.0, 4.0]).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 4, 4), [0, 0, 0, 0, 1, 2, 2, 2, 2, 3]),
        ((8, 4, 1), [0, 1, 0, 1, 2, 3, 2, 3]),
        ((8, 2, 1), [0, 1, 0, 1, 0, 1, 0, 1]),
        ((6, 2, 0), [0, 0, 0, 1, 1, 1]),
        ((3, 3, 0), [0, 1, 2]),
    ],
    ids=str,
)
def test_key_heads(arguments, expected):
    assert key_heads(*arguments) == expected


# ---- bounds from SDPA's log-sum-exp


def statistics_of_sdpa(q, k, ratio: int, ids, exact_above: float) -> torch.Tensor:
    """Maxima that attention reports by SDPA."""
    options = {"with_statistics": True, "exact_above": exact_above}
    if ratio == 0:
        return kernels.attention(q, k, k, ids, **options)[1].max_logits
    options["implementation"] = "sdpa"
    lam = torch.tensor(0.5)
    return kernels.grouped_differential_attention(q, k, k, lam, ratio, ids, **options)[1].max_logits


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0], ids=["flat", "normal", "peaked"])
@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "case",
    [(2, 1, 4, 2, 1, 16), (2, 150, 10, 4, 4, 32), (2, 77, 8, 2, 1, 16), (2, 150, 6, 2, 0, 16)],
    ids=str,
)
def test_bounds_lie_between_the_maximum_and_that_plus_log_seq(case, dtype, is_packed, scale):
    """Flat logits reach the upper end, peaked ones the lower."""
    batch, seq, _, _, ratio, _ = case
    q, k = heads_of(case, "cpu", dtype)
    q = q * scale
    ids = packed_ids(batch, seq, "cpu") if is_packed else None
    exact = exactly(q, k, ratio, ids)
    bounds = statistics_of_sdpa(q, k, ratio, ids, exact_above=math.inf).double()
    assert (bounds >= exact).all()
    allowed = exact + math.log(seq)
    assert (bounds <= allowed + 2e-3 * (1 + allowed.abs())).all()
    if scale == 0 and not is_packed:
        assert torch.allclose(bounds, allowed, atol=0.02)


@pytest.mark.parametrize("ratio", [0, 2])
def test_attention_replaces_the_bounds_above_a_threshold(ratio: int):
    q, k = heads_of((2, 60, 6, 2, ratio, 16), "cpu", torch.float32)
    ids = packed_ids(2, 60, "cpu")
    exact = exactly(q, k, ratio, ids)
    bounds = statistics_of_sdpa(q, k, ratio, ids, exact_above=math.inf)
    threshold = bounds.sort().values[2].item()
    found = statistics_of_sdpa(q, k, ratio, ids, exact_above=threshold)
    is_kept = bounds <= threshold
    assert is_kept.sum() == 3
    assert torch.equal(found[is_kept], bounds[is_kept])
    assert_close(found[~is_kept], exact[~is_kept])
    assert (found < bounds)[~is_kept].all()
    assert_close(statistics_of_sdpa(q, k, ratio, ids, exact_above=-math.inf), exact)
