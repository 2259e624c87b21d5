"""Activation checkpointing: what the backward pass does again, and what is kept for it."""

from collections import Counter

import layouts
import pytest
import torch

MODES = ("none", "products", "selective", "full")
NUM_LAYERS = 2


def work_of_a_step(mode: str):
    """Operators called by a step's forward and backward pass, and the bytes kept between them."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.calls, self.made = Counter(), {}

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls[function._overloadpacket.__name__] += 1
            result = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    storage = leaf.untyped_storage()
                    self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            return result

        def kept_bytes(self) -> int:
            return sum(num for storage, num in self.made.values() if not storage.expired())

    model, _ = layouts.build("one", mode, n_layers=NUM_LAYERS)
    tokens = layouts.all_tokens()
    with Watch() as forward:
        logits = model(tokens[:, :-1])
    kept_bytes = forward.kept_bytes()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    with Watch() as backward:
        loss.backward()
    return forward.calls, backward.calls, kept_bytes


@pytest.fixture(scope="module")
def work(rank_pool) -> dict:
    return {mode: rank_pool.run(work_of_a_step, 1, mode)[0] for mode in MODES}


# Of a block's operators, those that are done again. A block has seven products (q, k, v, o, gate,
# up, down) of which torchtitan's selective checkpointing keeps every second one, from the first on;
# four calls of attention (signal and noise meet two values each); and four norms (before attention,
# on its heads, before the feed-forward layer, and PolyNorm).
@pytest.mark.parametrize(
    ("mode", "products", "attentions", "norms"),
    [("none", 0, 0, 0), ("products", 0, 0, 4), ("selective", 3, 0, 4), ("full", 7, 4, 4)],
)
def test_the_backward_pass_repeats_what_was_not_kept(work, mode, products, attentions, norms):
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    forward, backward, _ = work[mode]
    assert forward["mm"] == 7 * NUM_LAYERS + 1  # the output projection is outside of the blocks
    assert forward[attention] == 4 * NUM_LAYERS
    assert forward["rsqrt"] == 4 * NUM_LAYERS + 1
    # a product has two gradients, of which each is a product
    assert backward["mm"] - 2 * forward["mm"] == products * NUM_LAYERS
    assert backward[attention] == attentions * NUM_LAYERS
    assert backward["rsqrt"] == norms * NUM_LAYERS


def test_what_is_kept_for_the_backward_pass_shrinks(work):
    none, products, selective, full = (work[mode][2] for mode in MODES)
    assert none > 1.25 * products > 1.25 * 1.1 * selective > 1.25 * 1.1 * 1.5 * full
