"""The gate on several ranks."""

import json

import torch


def refused(data_ranks: int, loss: float) -> float:
    """Decide about a loss where the last ones were about 3, each rank adding its part."""
    from titan_motif.components.loss_window import LossWindow
    from titan_motif.components.step_gate import Numbers, StepGate

    gate = StepGate(["a"], torch.device("cpu"))
    gate.window = LossWindow(4, 3.0, gate.device)
    gate.window.load_state_dict({"losses": json.dumps([3.0, 3.1, 2.9, 3.05])})
    gate.data_ranks, gate.data_rank = data_ranks, torch.distributed.get_rank() % data_ranks
    gate.add_loss(torch.tensor(loss / data_ranks))
    return gate.decide(Numbers([torch.ones(1)], [torch.ones(1)], [[]]))[0].item()


def test_a_spike_is_one_for_any_tensor_parallel_degree(rank_pool):
    """Ranks of tensor parallelism add the same loss, those of data parallelism their parts."""
    for ranks, data_ranks in ((1, 1), (2, 1), (2, 2), (4, 2)):
        assert rank_pool.run(refused, ranks, data_ranks, 3.0) == [0.0] * ranks
        assert rank_pool.run(refused, ranks, data_ranks, 3.5) == [1.0] * ranks
