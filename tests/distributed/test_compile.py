"""torch.compile of the blocks: one graph for all layers, none broken, none compiled again."""

import layouts
import torch


def compile_counts(recompute: str, tensor: int):
    """Graphs and breaks of 8 blocks after each of five steps; the odd ones record attention."""
    from torch._dynamo.utils import counters
    from torchtitan.distributed.utils import get_train_context

    torch._dynamo.reset()
    counters.clear()
    layout = {1: "one", 2: "tp2"}[tensor]
    model, dims = layouts.build(layout, recompute, "aot_eager", n_layers=8)
    tokens = layouts.all_tokens()[:2]
    counts = []
    for step in range(5):
        model.attention_record.is_recording = step % 2 == 1
        with get_train_context(dims.tp_enabled)():
            logits = model((tokens[:, :-1] + step) % 300).flatten(0, 1)
            torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        counts.append(counters["stats"]["unique_graphs"])
    return counts, dict(counters["graph_break"]), model.scalars().lam.detach()


def check(rank_pool, recompute: str, tensor: int) -> None:
    for counts, breaks, lam in rank_pool.run(
        compile_counts, tensor, recompute, tensor, seconds=150
    ):
        assert len(set(lam.tolist())) == 8  # the layers' numbers differ
        assert 1 <= counts[0] <= 2
        one = counts[0]
        assert counts == [one, 2 * one, 2 * one, 2 * one, 2 * one]  # with and without the record
        assert not breaks


def test_eight_blocks_share_their_graphs(rank_pool):
    check(rank_pool, "none", 1)


def test_eight_recomputed_blocks_share_their_graphs(rank_pool):
    check(rank_pool, "full", 1)


def test_eight_tensor_parallel_blocks_share_their_graphs(rank_pool):
    check(rank_pool, "selective", 2)
