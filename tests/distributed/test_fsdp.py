"""1, 2 and 3 ranks: the same model to begin with, the same step."""

import pytest
import torch

SMALL = {
    "dim": 40,
    "n_layers": 2,
    "n_heads": 5,
    "n_kv_heads": 2,
    "head_dim": 4,
    "hidden_dim": 50,
    "grouped_ratio": 4,
    "vocab_size": 300,  # two blocks of rows, so that a shard's edge falls into a block
    "max_seq_len": 64,
}
NUM_SEQUENCES = 6


def build(tied: bool):
    """A sharded model on all ranks of the process group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    from titan_motif.model import Motif2Model, Motif2ModelArgs
    from titan_motif.parallelize import shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),), mesh_dim_names=("fsdp",))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    with torch.device("meta"):
        model = Motif2Model(Motif2ModelArgs(**SMALL, tie_embeddings=tied))
    shard(model, mesh, policy)
    model.to_empty(device="cpu")
    model.init_weights()
    return model


def one_step(tied: bool):
    """Initial weights, shard sizes, loss and gathered gradients of one step over all ranks."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = build(tied)
    weights = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    local_sizes = {n: p.to_local().numel() for n, p in model.named_parameters()}

    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, SMALL["vocab_size"], (NUM_SEQUENCES, 17), generator=generator)
    mine = tokens[rank::ranks]
    logits = model(mine[:, :-1]).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, mine[:, 1:].flatten(), reduction="sum")
    loss = loss / (NUM_SEQUENCES * 16)
    loss.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
    return weights, local_sizes, total.item(), gradients


@pytest.mark.parametrize("tied", [False, True])
def test_ranks_agree_on_weights_loss_and_gradients(rank_pool, tied: bool):
    weights, _, loss, gradients = rank_pool.run(one_step, 1, tied)[0]
    assert all(gradient.norm() > 0 for gradient in gradients.values())
    for ranks in (2, 3):
        results = rank_pool.run(one_step, ranks, tied)
        for other_weights, _, other_loss, other_gradients in results:
            assert other_weights.keys() == weights.keys()
            assert all(torch.equal(other_weights[n], weights[n]) for n in weights)
            assert other_loss == pytest.approx(loss, rel=1e-5)
            for name, gradient in gradients.items():
                difference = (other_gradients[name] - gradient).norm() / gradient.norm()
                assert difference < 1e-5, name
    # three ranks had uneven shards, and an empty one (the bias of PolyNorm is one number)
    sizes = [result[1] for result in results]
    assert len({size["layers.0.attention.q_proj.weight"] for size in sizes}) > 1
    assert [size["scalars.layers.0.poly_bias"] for size in sizes] == [1, 0, 0]


def test_shards_are_not_copies_of_each_other(rank_pool):
    """What DTensor's own initialisation does on CPU."""
    weights = rank_pool.run(one_step, 2, False)[0][0]["tok_embeddings.weight"]
    assert not torch.equal(weights[:150], weights[150:])


def bfloat16_step():
    """Dtypes of everything in a step with the GPU's precision policy."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    from titan_motif.model import Motif2Model, Motif2ModelArgs
    from titan_motif.parallelize import shard

    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    with torch.device("meta"):
        model = Motif2Model(Motif2ModelArgs(**SMALL))
    shard(model, mesh, policy)
    model.to_empty(device="cpu")
    model.init_weights()
    seen = {}

    def remember(name):
        def hook(module, arguments, output):
            scalars = arguments[-1]
            seen[name] = {
                "lam": scalars.lam.dtype,
                "poly_weight": scalars.poly_weight.dtype,
                "weight": next(module.parameters()).dtype,
                "output": output.dtype,
            }

        return hook

    for name, block in model.layers.items():
        block.attention.register_forward_hook(remember(f"{name}.attention"))
        block.feed_forward.register_forward_hook(remember(f"{name}.feed_forward"))
    logits = model(torch.arange(8)[None])
    logits.float().logsumexp(-1).sum().backward()
    gradients = {p.grad.dtype for p in model.parameters()}
    parameters = {p.dtype for p in model.parameters()}
    return seen, logits.dtype, gradients, parameters


def test_precision_policy_leaves_lambda_and_poly_norm_in_float32(rank_pool):
    seen, logits, gradients, parameters = rank_pool.run(bfloat16_step, 2)[0]
    assert len(seen) == 4
    for dtypes in seen.values():
        assert dtypes["lam"] == dtypes["poly_weight"] == torch.float32
        assert dtypes["weight"] == dtypes["output"] == torch.bfloat16
    assert logits == torch.bfloat16
    assert gradients == parameters == {torch.float32}
