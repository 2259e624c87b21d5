"""What a job's FP8 settings must be: each rule gives the key and what is wrong."""

from collections.abc import Iterator, Mapping

from titan_motif.components.float8 import (
    FLOAT8,
    MULTIPLE,
    chosen_names,
    float8_problem,
    skipped_problem,
)
from titan_motif.config import Float8Linear, JobConfig
from titan_motif.config_keys import Finding
from titan_motif.model import Motif2ModelArgs
from titan_motif.model.model import parameter_shapes

_CUT_BY_COLUMNS = ("o_proj", "down_proj")
"""Layers whose inputs tensor parallelism cuts (titan_motif.tensor_parallel); of others outputs."""


def check_float8(config: JobConfig, args: Motif2ModelArgs, runs_here: bool) -> Iterator[Finding]:
    """Yield every finding; none where a job multiplies in bfloat16.

    Args:
        runs_here: whether this machine has to be able to
    """
    settings, unset = config.quantize.linear.float8, Float8Linear()
    if FLOAT8 not in config.model.converters:
        for name, value in vars(settings).items():
            if value != getattr(unset, name):
                yield f"{FLOAT8}.{name}", f"is {value!r}; it needs model.converters = {FLOAT8!r}"
        return
    problem = float8_problem() if runs_here and not settings.emulate else None
    if problem is not None:
        yield (
            "model.converters",
            f"names {FLOAT8!r}; {problem}, and products in FP8 need one of compute capability 8.9: "
            f"{FLOAT8}.emulate = true rounds alike on any device",
        )
    if settings.enable_fsdp_float8_all_gather and settings.recipe_name != "tensorwise":
        yield (
            f"{FLOAT8}.enable_fsdp_float8_all_gather",
            f"is true; recipe_name is {settings.recipe_name!r}, and only 'tensorwise' has one "
            "scale for all ranks' parts of a weight",
        )
    if (
        settings.precompute_float8_dynamic_scale_for_fsdp
        and not settings.enable_fsdp_float8_all_gather
    ):
        yield (
            f"{FLOAT8}.precompute_float8_dynamic_scale_for_fsdp",
            "is true; it needs enable_fsdp_float8_all_gather to be true as well",
        )
    # 'auto' is float32 on a machine without a GPU, which may well plan for one.
    if runs_here and config.training.mixed_precision_param == "float32" and not settings.emulate:
        yield (
            "training.mixed_precision_param",
            "is 'float32'; products in FP8 give 'bfloat16', or 'auto'",
        )
    checkpoint = config.activation_checkpoint
    if checkpoint.mode == "selective" and checkpoint.selective_ac_option == "op":
        yield (
            "activation_checkpoint.selective_ac_option",
            "is 'op', which counts no product in FP8 and would keep them all, as 'products' does; "
            "'products' or a positive integer is needed",
        )
    linears = {
        name.removesuffix(".weight"): shape
        for name, shape in parameter_shapes(args).items()
        if name.endswith(".weight") and len(shape) == 2 and not name.startswith("tok_embeddings.")
    }
    problem = skipped_problem(settings.filter_fqns, linears)
    if problem is not None:
        yield f"{FLOAT8}.filter_fqns", problem
        return
    chosen = chosen_names(linears, settings.filter_fqns)
    yield from _sizes(config, {name: linears[name] for name in chosen})


def _sizes(config: JobConfig, linears: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    """Yield what cannot be multiplied of the layers in FP8, as each rank has them."""
    degree = max(config.parallelism.tensor_parallel_degree, 1)
    for name, (rows, columns) in linears.items():
        is_cut_by_rows = not name.endswith(_CUT_BY_COLUMNS)
        sizes = (rows / degree, columns) if is_cut_by_rows else (rows, columns / degree)
        if rows % MULTIPLE or columns % MULTIPLE:
            yield (
                "model.args",
                f"gives {name} {rows} x {columns}; products in FP8 need multiples of {MULTIPLE}",
            )
            return
        if any(size % MULTIPLE for size in sizes):
            yield (
                "parallelism.tensor_parallel_degree",
                f"is {degree}; {name} would be {sizes[0]:g} x {sizes[1]:g} on a rank, and products "
                f"in FP8 need multiples of {MULTIPLE}",
            )
            return
    if config.quantize.linear.float8.recipe_name == "rowwise_with_gw_hp":
        return
    lengths = {"training.seq_len": config.training.seq_len}
    if config.curriculum.has_phases:
        phases = enumerate(config.curriculum.phases, start=1)
        lengths = {f"curriculum.phases.{i}.seq_len": phase.seq_len for i, phase in phases}
    for key, length in lengths.items():
        if length % MULTIPLE:
            yield (
                key,
                f"is {length}; a weight's gradient in FP8 sums over tokens in multiples of "
                f"{MULTIPLE} (recipe 'rowwise_with_gw_hp' takes any length)",
            )
