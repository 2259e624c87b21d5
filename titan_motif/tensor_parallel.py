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

from titan_motif.components.float8 import is_scaled_by_tensor
from titan_motif.device import device_type
from titan_motif.model import Motif2Model
from titan_motif.model.model import Block

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
        parallelize_module(block, mesh, _block_plan(block))


def _block_plan(block: Block) -> dict[str, ParallelStyle]:
    attention, feed_forward = _styles(block.attention), _styles(block.feed_forward)
    plan = {
        "attention_norm": SequenceParallel(),
        "attention": attention.gathered_input(num_arguments=5),
        "attention.q_proj": attention.columns(),
        "attention.k_proj": attention.columns(),
        "attention.v_proj": attention.columns(),
        "attention.o_proj": attention.rows(output_layouts=SEQUENCE),
        "ffn_norm": _SequenceNorm(),
        "feed_forward": feed_forward.gathered_input(num_arguments=2),
        # PolyNorm has to know that its rows are cut.
        "feed_forward.gate_proj": feed_forward.columns(use_local_output=False),
        "feed_forward.up_proj": feed_forward.columns(use_local_output=False),
        "feed_forward.down_proj": feed_forward.rows(output_layouts=SEQUENCE),
    }
    if block.attention.head_norm is not None:
        plan["attention.head_norm"] = _SequenceNorm(sequence_dim=HEADS)
    return plan


class _Styles(NamedTuple):
    """How linear layers are cut, and how the input of those that share one is gathered."""

    columns: type[ColwiseParallel]
    rows: type[RowwiseParallel]
    gathers: type[PrepareModuleInput]

    def gathered_input(self, num_arguments: int) -> PrepareModuleInput:
        """All-gather the first argument along the sequence; the others are alike on all ranks."""
        others = (None,) * (num_arguments - 1)
        return self.gathers(
            input_layouts=(SEQUENCE, *others), desired_input_layouts=(Replicate(), *others)
        )


def _styles(module: nn.Module) -> _Styles:
    """Return torchao's styles, which gather and scatter in FP8, where one scale serves a tensor.

    With a scale a row, or without FP8, activations travel in their own dtype; over gloo, which
    sends no FP8, too.
    """
    if is_scaled_by_tensor(module) and device_type != "cpu":
        from torchao.float8.float8_tensor_parallel import (
            Float8ColwiseParallel,
            Float8RowwiseParallel,
            PrepareFloat8ModuleInput,
        )

        return _Styles(Float8ColwiseParallel, Float8RowwiseParallel, PrepareFloat8ModuleInput)
    return _Styles(ColwiseParallel, RowwiseParallel, PrepareModuleInput)


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
