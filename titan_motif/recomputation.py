"""Activation checkpointing: what a block keeps for its backward pass, what it computes again."""

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torchtitan.config import JobConfig
from torchtitan.distributed.activation_checkpoint import apply_ac
from torchtitan.tools.logging import logger

from titan_motif.model import Motif2Model

PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_mm.default,  # in FP8
}
"""Matrix products, as they appear where a block is differentiated."""

KEPT_OPERATORS = {
    *PRODUCTS,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.titan_motif.differential_attention.default,
    torch.ops.titan_motif.largest_logits.default,
    # What crossed ranks is not sent again.
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.all_reduce.default,
}
"""What selective checkpointing keeps (with 'op' every second product: torchtitan's rule). The rest
is computed again: norms, rotation, PolyNorm, casts to FP8. They take memory's time, not the
products', and hold over a third of what a block would keep (docs/performance.md)."""


def checkpoint_activations(model: Motif2Model, job_config: JobConfig) -> None:
    """Recompute in the backward pass what `activation_checkpoint` says, block by block."""
    settings = job_config.activation_checkpoint
    if settings.mode == "none":
        return
    if settings.mode == "selective" and settings.selective_ac_option == "products":
        for name, block in model.layers.named_children():
            model.layers.register_module(name, _keeping_products(block, job_config))
        logger.info("blocks keep their products and attention, and compute the rest again")
        return
    apply_ac(
        model,
        settings,
        model_compile_enabled=compiles_model(job_config),
        op_sac_save_list=KEPT_OPERATORS,
        base_folder=job_config.job.dump_folder,
    )


def compiles_model(job_config: JobConfig) -> bool:
    """Return whether blocks are compiled."""
    return job_config.compile.enable and "model" in job_config.compile.components


def _keeping_products(block: nn.Module, job_config: JobConfig) -> nn.Module:
    settings = job_config.activation_checkpoint
    return checkpoint_wrapper(
        block,
        context_fn=lambda: create_selective_checkpoint_contexts(_policy),
        preserve_rng_state=settings.preserve_rng_state,
        determinism_check=settings.determinism_check,
        early_stop=settings.early_stop,
        debug=settings.debug,
    )


def _policy(context, operator, *arguments, **keywords) -> CheckpointPolicy:
    is_kept = operator in KEPT_OPERATORS
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
