"""Parallelism as a function over a finished model (on meta).

Order: tensor parallel -> activation checkpointing -> compile -> FSDP or HSDP. FSDP is applied on
one rank too, so that one precision policy holds on every layout, and no second path (autocast)
exists.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)
from torchtitan.config import TORCH_DTYPE_MAP, JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.tools.logging import logger

from titan_motif.device import device_type
from titan_motif.kernels import fastest_attention
from titan_motif.layout import check_layout
from titan_motif.model import Motif2Model, Motif2ModelArgs
from titan_motif.recomputation import checkpoint_activations, compiles_model
from titan_motif.tensor_parallel import apply_tensor_parallel


def parallelize(
    model: Motif2Model, parallel_dims: ParallelDims, job_config: JobConfig
) -> Motif2Model:
    """Apply what the job asks for to the model, in place, and return it.

    Raises: ValueError for a layout that this model cannot be trained on
    """
    for key, message in check_layout(job_config, model.model_args, parallel_dims.world_size):
        raise ValueError(f"{key} {message}")
    if parallel_dims.tp_enabled:
        apply_tensor_parallel(model, parallel_dims.get_mesh("tp"))
    # torch 2.13 cannot compile a fully checkpointed block of DTensors (it wants to save the mesh as
    # a tensor): there checkpointing goes around the compiled block. Elsewhere it goes inside, where
    # the compiler leaves out what the backward pass does not need.
    fully = job_config.activation_checkpoint.mode == "full"
    checkpoint_outside = parallel_dims.tp_enabled and fully
    if not checkpoint_outside:
        checkpoint_activations(model, job_config)
    if compiles_model(job_config):
        compile_blocks(model, job_config.compile.backend)
    if job_config.compile.enable and "loss" in job_config.compile.components:
        _allow_graphs()
        model.loss.compile(job_config.compile.backend)
    if checkpoint_outside:
        checkpoint_activations(model, job_config)
    training = job_config.training
    policy = precision_policy(job_config)
    offload = CPUOffloadPolicy() if training.enable_cpu_offload else None
    shard(
        model,
        data_parallel_mesh(parallel_dims),
        policy,
        reshard_after_forward=job_config.parallelism.fsdp_reshard_after_forward != "never",
        offload_policy=offload,
    )
    logger.info(
        f"{describe(parallel_dims)}: parameters {training.dtype}, products "
        f"{training.mixed_precision_param}, gradients reduced in {training.mixed_precision_reduce}"
    )
    logger.info(f"norms and PolyNorm: {model.model_args.kernels} kernels")
    logger.info(f"attention: {describe_attention(model.model_args, policy.param_dtype)}")
    return model


def describe_attention(args: Motif2ModelArgs, dtype: torch.dtype) -> str:
    """Return which path attention takes with queries, keys and values of this dtype."""
    if args.grouped_ratio == 0:
        return "plain, by SDPA"
    path = args.attention
    if path == "auto":
        path = fastest_attention(dtype, args.head_dim, torch.device(device_type))
    return "Triton kernels" if path == "triton" else "SDPA, four calls"


MAX_GRAPHS = 64
"""Of a block, and of the loss: each length and batch, in training and validation, with and without
what attention records. One more would stop the run."""


def _allow_graphs() -> None:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)


def compile_blocks(model: Motif2Model, backend: str | Callable[..., Any]) -> None:
    """Compile each block by itself: they share one graph, since a layer's lambda is a tensor.

    Each length of sequences has a graph of its own: with sizes left open the second length would
    compile kernels for any, slower ones, which later lengths and validation would take too.
    """
    _allow_graphs()
    for name, block in model.layers.named_children():
        compiled = torch.compile(block, backend=backend, fullgraph=True, dynamic=False)
        model.layers.register_module(name, compiled)
    logger.info(f"each block is compiled with {backend}")


def precision_policy(job_config: JobConfig) -> MixedPrecisionPolicy:
    """The one policy of every block: which dtype multiplies, and which one gradients meet in.

    Inputs are not cast: the embedding's dtype sets the activations', and what the blocks receive in
    float32 (lambda, PolyNorm's coefficients, rotation angles) has to stay so.
    """
    training = job_config.training
    return MixedPrecisionPolicy(
        param_dtype=TORCH_DTYPE_MAP[training.mixed_precision_param],
        reduce_dtype=TORCH_DTYPE_MAP[training.mixed_precision_reduce],
        cast_forward_inputs=False,
    )


def describe(parallel_dims: ParallelDims) -> str:
    """Return the layout in words: 'FSDP over 4 ranks x tensor parallel over 2'."""
    text = f"FSDP over {parallel_dims.dp_shard} ranks"
    if parallel_dims.dp_replicate_enabled:
        text = f"{parallel_dims.dp_replicate} replicas of {text}"
    return text + (
        f" x tensor parallel over {parallel_dims.tp}" if parallel_dims.tp_enabled else ""
    )


def data_parallel_mesh(parallel_dims: ParallelDims) -> DeviceMesh:
    """The mesh that parameters are sharded over, after a dimension of replicas if there are any."""
    if parallel_dims.dp_replicate_enabled:
        return parallel_dims.get_mesh(["dp_replicate", "fsdp"])
    if parallel_dims.fsdp_enabled:
        return parallel_dims.get_mesh("fsdp")
    if parallel_dims.tp_enabled:
        # torchtitan hands out no mesh of one rank; FSDP sets the precision, and needs one that
        # belongs to the same larger mesh as the tensor-parallel one.
        return parallel_dims._global_meshes["dense"]["fsdp"]
    return parallel_dims.world_mesh


def shard(
    model: Motif2Model,
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy,
    reshard_after_forward: bool = True,
    offload_policy: CPUOffloadPolicy | None = None,
) -> None:
    """Apply fully_shard to the float32 scalars, each block, both ends, and the root."""
    common = {"mesh": mesh}
    if offload_policy is not None:
        common["offload_policy"] = offload_policy
    float32 = MixedPrecisionPolicy(reduce_dtype=policy.reduce_dtype, cast_forward_inputs=False)
    # A few kilobytes for all layers: kept whole between forward and backward.
    fully_shard(model.scalars, mp_policy=float32, reshard_after_forward=False, **common)
    for block in model.layers.values():
        fully_shard(block, mp_policy=policy, reshard_after_forward=reshard_after_forward, **common)
    if model.output is not None:
        fully_shard(
            model.tok_embeddings,
            mp_policy=policy,
            reshard_after_forward=reshard_after_forward,
            **common,
        )
        # Needed again at once by the backward pass: not resharded.
        fully_shard(
            [model.norm, model.output], mp_policy=policy, reshard_after_forward=False, **common
        )
    # A tied embedding serves both ends: the root group holds it for the whole step.
    fully_shard(model, mp_policy=policy, reshard_after_forward=False, **common)
    if mesh.size() == 1:
        return  # nothing is divided; told of a factor, FSDP would copy every gradient for it
    for module in model.modules():
        if isinstance(module, FSDPModule):
            _sum_gradients(module)


def _sum_gradients(module: nn.Module) -> None:
    """Let gradients be summed: the trainer divides the loss by the global count of tokens."""
    module.set_gradient_divide_factor(1.0)
    if device_type == "cpu":
        # gloo has no pre-multiplied sum, FSDP's default way of dividing.
        module.set_force_sum_reduction_for_comms(True)
