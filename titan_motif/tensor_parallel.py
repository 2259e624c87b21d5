"""Tensor parallelism with sequence parallelism, as a function over a finished model (on meta).

Between blocks activations are cut along the sequence; inside attention and the feed-forward layer
they are whole along the sequence and cut by heads and by hidden columns:

    embedding   rows of the vocabulary        -> (batch, seq / n, dim)
    attention   all-gather, whole groups of heads, reduce-scatter
    feed forward all-gather, hidden columns (PolyNorm's row sums: one all-reduce), reduce-scatter
    norms       each rank its part of the sequence; the norm on heads, its own heads
    output      all-gather, columns of the vocabulary; the loss: three numbers a token all-gathered
    scalars     replicated: each rank computes lambda, and holds a part of its gradient
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from titan_motif.model import Motif2Model

SEQUENCE, HEADS = Shard(1), 2
"""Activations are (batch, seq, ...), and (batch, seq, heads, head_dim) inside attention."""


def apply_tensor_parallel(model: Motif2Model, mesh: DeviceMesh) -> None:
    """Cut the model over a one-dimensional mesh, in place.

    The logits are then a DTensor whose vocabulary is sharded; the loss is a plain tensor. Degrees
    that do not divide the model are the caller's to refuse (titan_motif.layout).
    """
    plan: dict[str, ParallelStyle] = {
        "tok_embeddings": _Embedding(input_layouts=Replicate(), output_layouts=SEQUENCE),
        "scalars": _ReplicatedScalars(),
        "norm": SequenceParallel() if model.output is not None else _GatheringNorm(),
    }
    if model.output is not None:
        plan["output"] = _Output(
            input_layouts=SEQUENCE, output_layouts=Shard(-1), use_local_output=False
        )
    parallelize_module(model, mesh, plan)
    heads = model.model_args.n_heads // mesh.size()
    model.attention_record.first_head = mesh.get_local_rank() * heads
    for block in model.layers.values():
        parallelize_module(block, mesh, _block_plan(has_head_norm=model.model_args.grouped_ratio))


def _block_plan(has_head_norm: bool) -> dict[str, ParallelStyle]:
    plan = {
        "attention_norm": SequenceParallel(),
        "attention": _gathered_input(num_arguments=5),
        "attention.q_proj": ColwiseParallel(),
        "attention.k_proj": ColwiseParallel(),
        "attention.v_proj": ColwiseParallel(),
        "attention.o_proj": RowwiseParallel(output_layouts=SEQUENCE),
        "ffn_norm": _SequenceNorm(),
        "feed_forward": _gathered_input(num_arguments=2),
        # PolyNorm has to know that its rows are cut.
        "feed_forward.gate_proj": ColwiseParallel(use_local_output=False),
        "feed_forward.up_proj": ColwiseParallel(use_local_output=False),
        "feed_forward.down_proj": RowwiseParallel(output_layouts=SEQUENCE),
    }
    if has_head_norm:
        plan["attention.head_norm"] = _SequenceNorm(sequence_dim=HEADS)
    return plan


def _gathered_input(num_arguments: int) -> PrepareModuleInput:
    """All-gather the first argument along the sequence; the others are the same on every rank."""
    others = (None,) * (num_arguments - 1)
    return PrepareModuleInput(
        input_layouts=(SEQUENCE, *others), desired_input_layouts=(Replicate(), *others)
    )


class _Embedding(RowwiseParallel):
    """An embedding whose output has arrived: torch.compile drops the gradient of one under way."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module = super()._apply(module, device_mesh)
        module.register_forward_hook(lambda module, inputs, out: _Wait.apply(out))
        return module


class _Wait(torch.autograd.Function):
    """The identity on a tensor that a collective still fills: waits for it."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.wait() if isinstance(x, AsyncCollectiveTensor) else x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class _SequenceNorm(SequenceParallel):
    """A norm along the sequence (or the heads) of several inputs and outputs, plain outside of it.

    Activations are this rank's part; scalars are the same on every rank.
    """

    @staticmethod
    def _prepare_input_fn(sharding, module, inputs, mesh):
        return tuple(
            DTensor.from_local(x, mesh, sharding, run_check=False) if x.ndim else x for x in inputs
        )

    @staticmethod
    def _prepare_output_fn(use_local_output, module, outputs, mesh):
        if isinstance(outputs, tuple):
            return tuple(out.to_local() for out in outputs)
        return outputs.to_local()


class _GatheringNorm(SequenceParallel):
    """A norm along the sequence whose output is gathered: a tied output projection follows it."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module = super()._apply(module, device_mesh)
        module.register_forward_hook(
            lambda module, inputs, out: out.redistribute(placements=[Replicate()])
        )
        return module


class _Output(ColwiseParallel):
    """A projection to columns of the vocabulary, or to the loss over all of them."""

    @staticmethod
    def _prepare_output_fn(output_layouts, use_local_output, module, outputs, mesh):
        if isinstance(outputs, DTensor):
            return ColwiseParallel._prepare_output_fn(
                output_layouts, use_local_output, module, outputs, mesh
            )
        return outputs


class _ReplicatedScalars(ParallelStyle):
    """Parameters and buffers on every rank; outputs are plain tensors with a part of the gradient.

    A rank uses lambda for its own heads and PolyNorm's coefficients for its own columns.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(
            module,
            device_mesh,
            output_fn=lambda module, outputs, mesh: _map_tensors(_to_local, outputs),
        )


def _map_tensors(function, outputs: NamedTuple) -> NamedTuple:
    return type(outputs)(*map(function, outputs))


def _to_local(stacked: DTensor) -> Tensor:
    """Make a stacked scalar plain; its gradient is summed once here, not once a layer."""
    if stacked.requires_grad:
        stacked.register_hook(lambda grad: grad.redistribute(placements=[Replicate()]))
    return stacked.to_local(grad_placements=[Partial()])
