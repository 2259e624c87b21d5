"""A simple moving average of weights, fed back into training: the mean of the last saved steps."""

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torchtitan.tools.logging import logger

from titan_motif.components.checkpoint import CompleteStepCheckpointManager
from titan_motif.components.dcp_reader import CheckedPlanner, CheckedReader


def passes_multiple(tokens_before: int, tokens: int, interval: int) -> bool:
    """Return whether a multiple of the interval lies within (tokens_before, tokens]."""
    return tokens // interval > tokens_before // interval


@torch.no_grad()
def feed_back(
    model: nn.Module, manager: CompleteStepCheckpointManager, step: int, num_steps: int
) -> list[int] | None:
    """Set a model's parameters to their mean over the newest saved steps up to `step`.

    Of steps that were due alone: where a run was stopped and saved is no matter of the average.
    Every rank reads what it holds, one saved step at a time.

    Returns: the steps, newest first; None, and nothing is changed, while there are fewer whole ones
    """
    manager.wait()
    saved = []
    for one in manager.saved_steps():
        if one.problem or one.is_model_only or one.step > step or len(saved) == num_steps:
            continue
        if one.step % manager.interval:
            continue
        problem = manager.content_problem(one.path)
        if problem:
            logger.warning(f"moving average: step-{one.step} {problem}; the one before it is taken")
        else:
            saved.append(one)
    if len(saved) < num_steps:
        return None
    state = model.state_dict()
    kinds = {name: torch.promote_types(v.dtype, torch.float32) for name, v in state.items()}
    total = {name: torch.zeros_like(v, dtype=kinds[name]) for name, v in state.items()}
    read = {name: torch.empty_like(value) for name, value in state.items()}
    for one in saved:
        reader, planner = CheckedReader(one.path), CheckedPlanner()
        dcp.load(read, storage_reader=reader, planner=planner)
        for name, value in read.items():
            total[name] += value
    for name, value in state.items():
        value.copy_(total[name] / num_steps)
    return [one.step for one in saved]
