"""FP8 on layouts of ranks: rounded alike everywhere; gradients in the dtypes that a job states."""

import layouts
import pytest
import torch
from test_layouts import distance, one_step


@pytest.fixture(scope="module")
def steps(rank_pool):
    """One rank's step in float32, and in FP8 by recipe."""
    return {
        recipe: rank_pool.run(one_step, 1, "one", float8=recipe, **layouts.FLOAT8)[0]
        for recipe in (None, "rowwise_with_gw_hp", "tensorwise")
    }


@pytest.mark.parametrize("layout", ["fsdp3", "hsdp2x2", "tp2", "fsdp2_tp2"])
def test_rows_are_rounded_alike_on_every_layout(rank_pool, steps, layout):
    one = steps["rowwise_with_gw_hp"]
    arguments = layouts.FLOAT8 | {"float8": "rowwise_with_gw_hp"}
    for other in rank_pool.run(one_step, layouts.LAYOUTS[layout][0], layout, **arguments):
        assert other[2] == pytest.approx(one[2], rel=1e-5)
        assert distance(other[3], one[3]) < 1e-5
    assert 0.02 < distance(one[3], steps[None][3]) < 0.3  # and it is FP8


def test_one_scale_a_tensor_is_as_near_on_ranks_that_gather_in_float8(rank_pool, steps):
    """Scales are those of a rank's own activations, so that roundings differ, not their size."""
    exact, one = steps[None], steps["tensorwise"]
    arguments = layouts.FLOAT8 | {"float8": "tensorwise", "gathers_in_float8": True}
    for other in rank_pool.run(one_step, 4, "fsdp2_tp2", **arguments):
        assert distance(other[3], exact[3]) < 1.3 * distance(one[3], exact[3])
        assert other[2] == pytest.approx(exact[2], rel=2e-3)


def dtypes_of_a_step(reduce_dtype: str):
    """Dtypes of weights' gradients before they are reduced, of what is sent, and of the rest."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sent = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if "reduce_scatter" in function._opname:
                tensors = torch.utils._pytree.tree_leaves(arguments)
                sent.update(t.dtype for t in tensors if isinstance(t, torch.Tensor))
            return function(*arguments, **(keywords or {}))

    precision = ("bfloat16", reduce_dtype)
    model, _ = layouts.build(
        "fsdp2", float8="rowwise_with_gw_hp", precision=precision, **layouts.FLOAT8
    )
    unreduced = {}

    def watch(name):
        def hook(module, arguments):
            module.weight.register_hook(lambda grad: unreduced.__setitem__(name, grad.dtype))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.register_forward_pre_hook(watch(name))
    tokens = layouts.all_tokens()
    with Watch():
        model(tokens[:, :-1], labels=tokens[:, 1:]).total.backward()
    return unreduced, sent, {p.grad.dtype for p in model.parameters()}


@pytest.mark.parametrize("reduce_dtype", ["float32", "bfloat16"])
def test_gradients_have_the_dtypes_that_the_job_states(rank_pool, reduce_dtype):
    for unreduced, sent, reduced in rank_pool.run(dtypes_of_a_step, 2, reduce_dtype):
        assert len(unreduced) == 7 * 2 + 2
        assert set(unreduced.values()) == {torch.bfloat16}
        assert sent == {getattr(torch, reduce_dtype)}
        assert reduced == {torch.float32}
