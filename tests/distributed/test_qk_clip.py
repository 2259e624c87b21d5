"""QK-clip on every layout of ranks: the same weights as on one, one collective, and it holds."""

import pytest
import torch
from layouts import (
    LAYOUTS,
    NUM_SEQUENCES,
    SEQ_LEN,
    CountCollectives,
    all_tokens,
    build,
    named,
)

HEADS, THRESHOLD = 20, 1.7


def clipped_step(layout: str, balance: str = "symmetric", backend: str | None = None):
    """A step at a learning rate of zero: maxima before and after the clip, weights, collectives."""
    from torchtitan.distributed.utils import get_train_context

    from titan_motif.config import Optimizer
    from titan_motif.optimizers import build_optimizers

    torch._dynamo.reset()
    model, dims = build(layout, backend=backend)
    config = Optimizer(name="AdamW", lr=0.0, weight_decay=0.0, implementation="for-loop")
    config.qk_clip, config.qk_clip_threshold, config.qk_clip_balance = True, THRESHOLD, balance
    optimizers = build_optimizers([model], config, dims)
    tokens = all_tokens()
    batch = dims.get_optional_mesh("batch")
    if batch is not None:
        tokens = tokens[batch.get_local_rank() :: batch.size()]

    def maxima() -> tuple[torch.Tensor, dict[str, int]]:
        """Of two micro-batches, over all ranks."""
        for micro_batch in tokens[:, :-1].chunk(2):
            with get_train_context(dims.tp_enabled)():
                out = model(micro_batch)
                out = out.full_tensor() if dims.tp_enabled else out
                (out.sum() / (NUM_SEQUENCES * SEQ_LEN)).backward()
        with CountCollectives() as count:
            optimizers.step()
        seen = optimizers.monitor._since_log
        optimizers.zero_grad()
        return seen, dict(count.found)

    before, collectives = maxima()
    figures = optimizers.monitor.metrics()
    weights = named(model, lambda p: p.full_tensor().clone())
    optimizers.monitor.clip = None
    optimizers.monitor._will_log = lambda step: True
    optimizers.monitor.begin_step(2)
    after, _ = maxima()
    kept = {n: w for n, w in weights.items() if "q_proj" in n or "k_proj" in n}
    return before, after, kept, collectives, figures


@pytest.fixture(scope="module")
def one_rank(rank_pool):
    before, after, weights, _, figures = rank_pool.run(clipped_step, 1, "one")[0]
    logits = before[:, :HEADS]
    assert 3 < (logits > THRESHOLD).sum() < logits.numel() - 3
    assert figures["attention/clipped_heads"] == (logits > THRESHOLD).sum()
    assert figures["attention_max_logit/layer_1"] == logits[1].max()
    # Of the first layer: what later ones see has changed with it.
    assert after[0, :HEADS].max() <= THRESHOLD * 1.001
    assert before[0, :HEADS].max() > 1.05 * THRESHOLD
    # lambda and the ratio of the maps are there too, and a clip changes no lambda.
    assert torch.equal(before[:, -1], after[:, -1])
    assert figures["attention_lambda/layer_0"] == before[0, -1]
    assert (before[:, -2] > 0).all()
    return before, weights


def assert_same_heads_are_clipped(seen: torch.Tensor, before: torch.Tensor, bound=1e-6) -> None:
    """Under the threshold maxima may be upper bounds, which depend on who sees which sequence."""
    seen, before = seen[:, :HEADS], before[:, :HEADS]
    clipped = before > THRESHOLD
    assert torch.equal(seen > THRESHOLD, clipped)
    assert ((seen - before)[clipped] / before[clipped]).abs().max() <= bound


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_every_layout_clips_as_one_rank_does(rank_pool, one_rank, layout: str):
    before, weights = one_rank
    for seen, after, found, collectives, figures in rank_pool.run(
        clipped_step, LAYOUTS[layout][0], layout
    ):
        assert_same_heads_are_clipped(seen, before)
        assert (seen[:, -1] - before[:, -1]).abs().max() <= 1e-6
        assert found.keys() == weights.keys()
        for name, weight in weights.items():
            assert (found[name] - weight).norm() <= 1e-6 * weight.norm(), name
        assert after[0, :HEADS].max() <= THRESHOLD * 1.001
        assert figures["attention/clipped_heads"] == (before[:, :HEADS] > THRESHOLD).sum()
        assert collectives == {"allreduce_": 2}  # the gate's flags and the maxima; AdamW none


def test_the_grouped_balance_holds_on_shards(rank_pool):
    symmetric = rank_pool.run(clipped_step, 4, "fsdp2_tp2", "symmetric")[0]
    grouped = rank_pool.run(clipped_step, 4, "fsdp2_tp2", "grouped")[0]
    assert grouped[1][0, :HEADS].max() <= THRESHOLD * 1.001
    name = "layers.0.attention.k_proj.weight"
    assert grouped[2][name].norm() > symmetric[2][name].norm()


def test_compiled_blocks_record_the_same(rank_pool, one_rank):
    before, _ = one_rank
    seen = rank_pool.run(clipped_step, 1, "one", "symmetric", "aot_eager", seconds=200)[0][0]
    assert_same_heads_are_clipped(seen, before, bound=1e-5)
