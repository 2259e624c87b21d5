"""torch.compile of the blocks: one graph for all layers, none broken, none compiled again."""

import layouts
import torch


def compile_counts(recompute: str, tensor: int, **arguments):
    """Graphs and breaks of 8 blocks after each of five steps; the odd ones record attention."""
    from torch._dynamo.utils import counters
    from torchtitan.distributed.utils import get_train_context

    torch._dynamo.reset()
    counters.clear()
    layout = {1: "one", 2: "tp2"}[tensor]
    arguments |= {"n_layers": 8, "loss_chunk_tokens": 16}
    model, dims = layouts.build(layout, recompute, "aot_eager", **arguments)
    tokens = layouts.all_tokens()[:2]
    counts = []
    for step in range(5):
        model.attention_record.is_recording = step % 2 == 1
        with get_train_context(dims.tp_enabled)():
            model((tokens[:, :-1] + step) % 300, labels=tokens[:, 1:]).total.backward()
        counts.append(counters["stats"]["unique_graphs"])
    return counts, dict(counters["graph_break"]), model.scalars().lam.detach()


NUM_LOSS_GRAPHS = 2  # what is read of a chunk's logits, and their gradient


def check(rank_pool, recompute: str, tensor: int, **arguments) -> None:
    for counts, breaks, lam in rank_pool.run(
        compile_counts, tensor, recompute, tensor, seconds=150, **arguments
    ):
        assert len(set(lam.tolist())) == 8  # the layers' numbers differ
        one, *more = (count - NUM_LOSS_GRAPHS for count in counts)
        assert 1 <= one <= 2
        assert more == [2 * one] * 4  # with and without the record
        assert not breaks


def test_eight_blocks_share_their_graphs(rank_pool):
    check(rank_pool, "none", 1)


def test_eight_recomputed_blocks_share_their_graphs(rank_pool):
    check(rank_pool, "full", 1)


def test_eight_blocks_in_float8_that_keep_their_products_share_their_graphs(rank_pool):
    check(rank_pool, "products", 1, float8="rowwise_with_gw_hp", **layouts.FLOAT8)


def test_eight_tensor_parallel_blocks_share_their_graphs(rank_pool):
    check(rank_pool, "selective", 2)
