"""Matrix products in FP8, by torchao's Float8Linear: which layers, which recipe, what cannot work.

Of a linear layer's three products (output, gradient of the input, gradient of the weight):

    rowwise_with_gw_hp  a scale a row for the first two; the weight's gradient in the dtype of the
                        activations (bfloat16)
    rowwise             a scale a row for all three
    tensorwise          one scale a tensor for all three; the one recipe whose weights FSDP, and
                        whose activations tensor parallelism, can gather in FP8

Weights stay what they are, in training.dtype, and so do gradients: FP8 is what enters a product.

torchtitan 0.2.2 has a converter of this name. Ours emulates every recipe (compiled too), refuses
what torchtitan's leaves out in silence, and keeps the output projection out of it.

torchao is imported where it is used: it warns as it is, of this and that, in runs without FP8 too.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torchtitan.config import JobConfig
from torchtitan.config.job_config import Float8Linear as Float8Settings
from torchtitan.distributed import ParallelDims
from torchtitan.tools.logging import logger

Recipe = Literal["rowwise_with_gw_hp", "rowwise", "tensorwise"]

FLOAT8 = "quantize.linear.float8"
"""The converter's name in `model.converters`, and its section of the configuration."""

HEAD = "output"
"""Name of the layer that is never in FP8: the loss reads the weight itself, and it is where
precision counts most."""

MULTIPLE = 16
"""Rows, columns and tokens that the products take come in multiples of it."""


def convert_to_float8(
    model: nn.Module,
    recipe: Recipe,
    skipped: Sequence[str] = (),
    emulate: bool = False,
    gathers_in_float8: bool = False,
) -> list[str]:
    """Replace linear layers by Float8Linear, in place; return the names of the replaced ones.

    Args:
        skipped:           parts of names whose layers are left as they are, beside the head
        emulate:           round as FP8 does, and multiply in the activations' dtype: any device
        gathers_in_float8: let FSDP gather weights in FP8; with tensorwise only
    Raises: ValueError for a part of a name that no linear layer has, and for a layer whose sizes no
            product in FP8 has
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    problem = skipped_problem(skipped, found)
    if problem is not None:
        raise ValueError(f"{FLOAT8}.filter_fqns {problem}")
    chosen = chosen_names(found, skipped)
    for name in chosen:
        rows, columns = found[name].weight.shape
        if rows % MULTIPLE or columns % MULTIPLE:
            raise ValueError(
                f"{FLOAT8}: {name} is {rows} x {columns}; products in FP8 need multiples of "
                f"{MULTIPLE}: filter_fqns leaves a layer out"
            )
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = dataclasses.replace(
        Float8LinearConfig.from_recipe_name(recipe),
        emulate=emulate,
        enable_fsdp_float8_all_gather=gathers_in_float8,
    )
    convert_to_float8_training(
        model, config=config, module_filter_fn=lambda module, name: name in chosen
    )
    if gathers_in_float8:
        model.register_state_dict_post_hook(_give_plain_weights)
    _set_compiler(recipe)
    return chosen


def _set_compiler(recipe: Recipe) -> None:
    """Tell inductor, in this process, how to compile casts to FP8."""
    # The gradient of the input wants the weight transposed. In tiles of two dimensions, as matrices
    # are transposed, that takes a third of the time.
    torch._inductor.config.triton.prefer_nd_tiling = True
    if recipe == "rowwise":
        # Compiled without it, scales may differ from those that the values were divided by:
        # https://github.com/pytorch/pytorch/issues/150859
        torch._inductor.config.emulate_precision_casts = True


def _give_plain_weights(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """Replace torchao's weights for FP8 gathers by the tensors inside, which share their memory.

    DCP saves the outer ones, which have no storage of their own, without an error and as whatever
    lay in memory.
    """
    from torchao.float8.fsdp_utils import WeightWithDynamicFloat8CastTensor

    for name, value in state_dict.items():
        local = value.to_local() if isinstance(value, DTensor) else value
        if not isinstance(local, WeightWithDynamicFloat8CastTensor):
            continue
        plain = local._tensor
        if isinstance(value, DTensor):
            plain = DTensor.from_local(
                plain,
                value.device_mesh,
                value.placements,
                run_check=False,
                shape=value.shape,
                stride=value.stride(),
            )
        state_dict[name] = plain


def chosen_names(names: Iterable[str], skipped: Sequence[str]) -> list[str]:
    """Return the names of the linear layers in FP8: all but the head, and those left out."""
    return [name for name in names if name != HEAD and not any(part in name for part in skipped)]


def skipped_problem(skipped: Sequence[str], names: Iterable[str]) -> str | None:
    """Return what is wrong with parts of names, beside the names of all linear layers."""
    names = [name for name in names if name != HEAD]
    for part in skipped:
        if not any(part in name for name in names):
            return f"has {part!r}, which no linear layer's name has"
    return None


def float8_problem() -> str | None:
    """Return why this machine cannot multiply in FP8; None if it can."""
    if not torch.cuda.is_available():
        return "this machine shows no GPU"
    if torch.cuda.get_device_capability() < (8, 9):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.9"
    return None


def is_scaled_by_tensor(module: nn.Module) -> bool:
    """Return whether all linear layers of a module are in FP8 with one scale a tensor."""
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if any(type(m) is nn.Linear for m in linears):
        return False
    from torchao.float8.config import ScalingGranularity

    by_tensor = ScalingGranularity.TENSORWISE
    return all(m.config.cast_config_input.scaling_granularity is by_tensor for m in linears)


def precompute_scales(model: nn.Module, settings: Float8Settings) -> None:
    """Compute the scales of all weights at once, if the job says so; due after any change of them.

    After a load too: while an optimizer's state is built for it, its hooks have run once, and the
    scales of the first weights, kept, would saturate those that were loaded.
    """
    if settings.precompute_float8_dynamic_scale_for_fsdp:
        from torchao.float8 import precompute_float8_dynamic_scale_for_fsdp

        precompute_float8_dynamic_scale_for_fsdp(model)


class Float8Converter:
    """torchtitan's ModelConverter of `model.converters = ["quantize.linear.float8"]`."""

    def __init__(self, job_config: JobConfig, parallel_dims: ParallelDims) -> None:
        self.settings = job_config.quantize.linear.float8
        assert self.settings.recipe_name in get_args(Recipe)

    def convert(self, model: nn.Module) -> None:
        """Replace the model's linear layers by those in FP8, and log how many."""
        settings = self.settings
        chosen = convert_to_float8(
            model,
            settings.recipe_name,
            settings.filter_fqns,
            settings.emulate,
            settings.enable_fsdp_float8_all_gather,
        )
        how = "emulated FP8" if settings.emulate else "FP8"
        gathered = ", gathered in FP8" if settings.enable_fsdp_float8_all_gather else ""
        logger.info(f"{len(chosen)} linear layers in {how}: {settings.recipe_name}{gathered}")

    def post_optimizer_hook(self, model: nn.Module | list[nn.Module]) -> None:
        """Compute the scales of the updated weights, where FSDP gathers them in FP8."""
        for part in model if isinstance(model, list) else [model]:
            precompute_scales(part, self.settings)
