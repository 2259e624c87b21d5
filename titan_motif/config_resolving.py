"""What a job's settings mean on this machine, with so many processes, and what phases decide."""

from pathlib import Path

import torch

from titan_motif.components.curriculum.micro_batches import Share
from titan_motif.components.curriculum.schedule import RunPlan
from titan_motif.config import JobConfig
from titan_motif.curriculum import plan_of
from titan_motif.kernels import default_implementation
from titan_motif.layout import data_parallel_ranks
from titan_motif.sft import resolve_sft

DECIDED_BY_PHASES = ("training.seq_len", "training.local_batch_size", "training.global_batch_size")
"""Settings that a curriculum's phases stand in place of."""


def resolve(config: JobConfig, world_size: int | None = None) -> None:
    """Replace what is 'auto' by what it means on this machine, in place. Twice is as once.

    Args:
        world_size: number of processes; None leaves what depends on it, and so do ranks that do
                    not divide the global batch (titan_motif.layout refuses them)
    """
    training = config.training
    if config.model.hf_assets_path == "auto":
        config.model.hf_assets_path = str(Path(training.dataset_path) / "tokenizer")
    if config.model.kernels == "auto":
        config.model.kernels = default_implementation()
    if training.mixed_precision_param == "auto":
        on_cpu = torch.accelerator.current_accelerator(check_available=True) is None
        training.mixed_precision_param = "float32" if on_cpu else "bfloat16"
    if world_size is not None:
        size = training.global_batch_size
        ranks = data_parallel_ranks(config, world_size)
        if training.local_batch_size == -1 and ranks and size > 0 and size % ranks == 0:
            training.local_batch_size = size // ranks
    resolve_sft(config, world_size)
    plan = plan_of(config, world_size)
    if plan is not None and config.curriculum.has_phases:
        _take_over(plan, config, world_size)
    config.lr_scheduler.plan = plan


def _take_over(plan: RunPlan, config: JobConfig, world_size: int | None) -> None:
    """Let a plan of phases decide what torchtitan's settings can say of it."""
    training = config.training
    training.seq_len = max(phase.seq_len for phase in plan.phases)
    training.global_batch_size = -1
    if training.steps == -1:
        training.steps = plan.num_steps
    if world_size is not None:
        ranks = max(data_parallel_ranks(config, world_size), 1)
        share = Share(0, ranks, config.curriculum.local_batch_tokens)
        training.local_batch_size = share.rows(plan.step(0))
