"""QK-clip: factors of heads, and what they do to weights and logits."""

import math

import pytest
import torch

from titan_motif.components.muon import QKClip
from titan_motif.components.muon.qk_clip import clip_factors, key_exponents
from titan_motif.kernels import key_heads, largest_logits

NAN, INF = math.nan, math.inf


def factors(max_logits, key_of_query, threshold=100.0, balance="symmetric"):
    exponents = torch.tensor(key_exponents(key_of_query, balance))
    return clip_factors(torch.tensor(max_logits), torch.tensor(key_of_query), exponents, threshold)


def test_a_head_above_the_threshold_is_corrected_by_a_square_root_each():
    queries, keys = factors([[400.0, 100.0, 50.0]], [0, 1, 2])
    assert queries.tolist() == keys.tolist() == [[0.5, 1.0, 1.0]]


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, -5.0, 100.0])
def test_what_asks_for_nothing_leaves_factors_of_exactly_one(value: float):
    queries, keys = factors([[value, 200.0]], [0, 1])
    assert queries[0, 0].item() == keys[0, 0].item() == 1.0
    assert queries[0, 1].item() == keys[0, 1].item() == pytest.approx(0.5**0.5)


def test_a_shared_key_head_takes_its_smallest_factor():
    queries, keys = factors([[400.0, 100.0, 900.0, 50.0]], [0, 0, 1, 1])
    assert queries[0].tolist() == pytest.approx([0.5, 1.0, 1 / 3, 1.0])
    assert keys[0].tolist() == pytest.approx([0.5, 1 / 3])


def test_grouped_balance_moves_a_shared_key_head_less():
    # Four queries share key head 0: r = 1 / (1 + 2); one has key head 1: r = 1 / 2.
    assert key_exponents([0, 0, 0, 0, 1], "grouped") == pytest.approx([1 / 3, 1 / 2])
    queries, keys = factors([[800.0, 1.0, 1.0, 1.0, 400.0]], [0, 0, 0, 0, 1], balance="grouped")
    assert keys[0].tolist() == pytest.approx([8 ** (-1 / 3), 0.5])
    assert queries[0].tolist() == pytest.approx([8 ** (-2 / 3), 1, 1, 1, 0.5])


@pytest.mark.parametrize("balance", ["symmetric", "grouped"])
@pytest.mark.parametrize(("ratio", "heads", "kv_heads"), [(4, 10, 4), (1, 8, 4), (0, 6, 2)])
def test_no_head_is_above_the_threshold_after_a_clip(balance, ratio, heads, kv_heads):
    """Weights of three layers; the logits of the same input are computed again."""
    torch.manual_seed(0)
    head_dim, width, layers = 8, 24, 3
    mapping = key_heads(heads, kv_heads, ratio)
    queries = [4 * torch.randn(heads * head_dim, width) for _ in range(layers)]
    keys = [torch.randn(kv_heads * head_dim, width) for _ in range(layers)]
    x = torch.randn(2, 17, width)

    def maxima() -> torch.Tensor:
        found = []
        for q, k in zip(queries, keys, strict=True):
            q, k = ((x @ w.mT).unflatten(-1, (-1, head_dim)) for w in (q, k))
            bounds = torch.full((heads,), math.inf)
            found.append(largest_logits(q, k, None, bounds, ratio, -math.inf))
        return torch.stack(found)

    before = maxima()
    threshold = before.median().item()
    original = [w.clone() for w in (*queries, *keys)]
    num_clipped = QKClip(queries, keys, mapping, head_dim, threshold, balance)(before)
    after = maxima()
    assert num_clipped.item() == (before > threshold).sum().item() > 5
    assert after.max().item() <= threshold * 1.001
    # A head that was above, and whose key head nobody wanted smaller, is now at the threshold.
    assert (after.max() / threshold).item() == pytest.approx(1, abs=1e-3)
    # What asked for nothing, and shares nothing with one that did, has not moved by a bit.
    for layer in range(layers):
        for head in range(heads):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            moved = not torch.equal(queries[layer][rows], original[layer][rows])
            assert moved == bool(before[layer, head] > threshold)
        for key in range(kv_heads):
            sharing = [before[layer, h] > threshold for h in range(heads) if mapping[h] == key]
            rows = slice(key * head_dim, (key + 1) * head_dim)
            moved = not torch.equal(keys[layer][rows], original[layers + layer][rows])
            assert moved == any(sharing)


def test_weights_that_do_not_fit_and_settings_out_of_range_are_refused():
    q, k = torch.ones(8, 3), torch.ones(4, 3)
    with pytest.raises(ValueError, match="a weight has 4 rows; 2 heads of 4 need 8"):
        QKClip([k], [k], [0, 0], head_dim=4)
    with pytest.raises(ValueError, match=r"threshold is 0\.0; more than 0 is needed"):
        QKClip([q], [k], [0, 0], head_dim=4, threshold=0.0)
    with pytest.raises(ValueError, match="balance is 'both'; one of 'symmetric', 'grouped'"):
        QKClip([q], [k], [0, 0], head_dim=4, balance="both")
