"""The arms of the attention experiment, and what its page says of them."""

import torch
from torch.nn import functional

from titan_motif.experiments.gda import ARMS, Gda, shape_of
from titan_motif.experiments.job import CellOptions, Devices
from titan_motif.model.attention import Attention, rotation_at


def gda(*, is_quick: bool = False) -> Gda:
    return Gda(CellOptions(Devices("cpu", 1), is_quick))


def test_arms_have_equally_many_parameters():
    """Within 0.5% of each other, and their shapes are those of the page."""
    experiment = gda()
    totals = [experiment.parameters(name)["total"] for name in ARMS]
    assert max(totals) / min(totals) < 1.005
    assert experiment.parameters("standard") == {"total": 33_563_168, "blocks": 25_174_560}
    assert shape_of(experiment.standard, ARMS["ratio4"]) == {
        "n_heads": 30,
        "n_kv_heads": 6,
        "grouped_ratio": 4,
        "hidden_dim": 1088,
    }
    assert all(
        shape_of(experiment.standard, arm)["n_heads"] == 24 * (1 + arm.ratio) // max(arm.ratio, 1)
        for arm in ARMS.values()
        if arm.ratio
    )


def test_standard_arm_is_softmax_attention():
    """Its attention has no lambda and no norm: projections around torch's own attention."""
    args = gda(is_quick=True).standard
    attention = Attention(args).double()
    assert attention.head_norm is None
    x = torch.randn(2, 9, args.dim, dtype=torch.float64)
    rotation = rotation_at(torch.arange(9)[None], args.head_dim, args.rope_theta, torch.float64)
    out, _ = attention(x, rotation, None, None, None)
    q, k, v = (t.transpose(1, 2) for t in attention.project(x, rotation))
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = attention.o_proj(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)


def test_page_has_arms_data_and_training():
    experiment = gda()
    splits = {"train": {"tokens": 1234}, "validation": {"tokens": 56}}
    experiment.record = {
        "settings": {},
        "texts_sha256": "a" * 64,
        "tokenizer_sha256": "b" * 64,
        "num_texts": 7,
        "sources": {"text": {"splits": splits, "files": {}}},
    }
    page = experiment.page("titan-motif experiment gda --resume")
    assert "| ratio3 | 24 | 8 | 8 | 1,024 |" in page.setup
    assert "300,000,000 tokens (text 60%, retrieval 20%, arithmetic 20%)" in page.setup
    assert "learning rate 0.003" in page.setup
    assert "text 1,234 tokens to learn from and 56 to validate" in page.setup
    assert [measure.name for measure in page.measures[:5]] == [
        "text loss",
        "retrieval loss",
        "arithmetic loss",
        "retrieval, 1 value",
        "retrieval, 2 values",
    ]
    row = {"accuracy": {"retrieval": {"1": 250}}, "validation_losses": {"text": 1.5}}
    assert page.measures[0].value_of(row) == 1.5
    assert page.measures[3].value_of(row) == 0.25
    told = "\n".join(
        page.tell_more(rows := {"standard": [cell(4.0, 2.0)], "ratio4": [cell(3.0, 1.0)]})
    )
    assert "| text, 3.0000 | 15 | 10 |" in told
    assert "| text, 2.0000 | 20 | 15 |" in told
    assert page.tell_more({"standard": [], "ratio4": []}) == []
    (told,) = page.conclude(rows)
    assert told.startswith(
        "Both arms answer 99.5% or more of retrieval, 1 value; arithmetic, 1 step:"
    )


def cell(first: float, last: float) -> dict:
    """Return a cell's row: validated after 10 and after 20 million tokens, at ceilings in part."""
    groups = ("text", "retrieval", "arithmetic")
    return {
        "step": 20,
        "tokens_seen": 20_000_000,
        "validation_curve": {
            "step": [10, 20],
            **{f"validation_loss/{g}": [first, last] for g in groups},
        },
        "accuracy": {
            "retrieval": {"1": 1000, "2": 994, "4": 900, "8": 0},
            "arithmetic": {"1": 995, "2": 994, "4": 900, "8": 0},
        },
    }
