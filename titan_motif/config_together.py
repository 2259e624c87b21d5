"""What settings must be beside others: each rule gives the key and what is wrong."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from titan_motif.components.watchdog import most_seconds
from titan_motif.config import ActivationCheckpoint, JobConfig, LRScheduler
from titan_motif.config_keys import Finding, value_of
from titan_motif.config_types import told

NEEDS: dict[str, tuple[str, Any]] = {
    "checkpoint.last_save_in_hf": ("checkpoint.last_save_model_only", True),
    "checkpoint.export_dtype": ("checkpoint.last_save_model_only", True),
    "checkpoint.initial_load_in_hf": ("checkpoint.initial_load_model_only", True),
    "checkpoint.initial_load_path": ("checkpoint.enable", True),
    "checkpoint.last_save_model_only": ("checkpoint.enable", True),
    "checkpoint.enable_first_step_checkpoint": ("checkpoint.enable", True),
    "checkpoint.create_seed_checkpoint": ("checkpoint.enable", True),
    "checkpoint.load_only": ("checkpoint.enable", True),
    "checkpoint.load_step": ("checkpoint.enable", True),
    "checkpoint.exclude_from_loading": ("checkpoint.enable", True),
    "moving_average.enable": ("checkpoint.enable", True),
    "activation_checkpoint.selective_ac_option": ("activation_checkpoint.mode", "selective"),
    "activation_checkpoint.memory_budget": ("activation_checkpoint.mode", "memory_budget"),
    "activation_checkpoint.visualize_memory_budget_pareto": (
        "activation_checkpoint.mode",
        "memory_budget",
    ),
    "optimizer.qk_clip_threshold": ("optimizer.qk_clip", True),
    "optimizer.qk_clip_interval": ("optimizer.qk_clip", True),
    "optimizer.qk_clip_balance": ("optimizer.qk_clip", True),
    "training.restart_positions": ("training.mask_documents", True),
    "debug.deterministic_warn_only": ("debug.deterministic", True),
}
"""What is asked for in vain, or ends the run, unless another setting has a value. Whatever else a
section has that is switched off waits for it: a command line switches off what a file has set."""
NOTHING_IS_SAVED = {
    "checkpoint.create_seed_checkpoint": False,
    "checkpoint.last_save_model_only": False,
    "checkpoint.enable_first_step_checkpoint": False,
    "moving_average.enable": False,
}
"""What checkpoint.load_only leaves nothing to do, each with its default."""


def check_together(config: JobConfig, world_size: int | None) -> Iterator[Finding]:
    """Yield each setting that asks in vain for something, or ends the run, beside others."""
    defaults = JobConfig()
    yield from _recomputing(config)
    for key, (other, needed) in NEEDS.items():
        value = value_of(config, key)
        if value != value_of(defaults, key) and value_of(config, other) != needed:
            yield key, f"is {_as_toml(value)}; it needs {other} to be {_as_toml(needed)}"
    yield from _saving(config, world_size)
    yield from _reading(config)
    yield from _watching(config)
    yield from _profiling(config)
    if config.compile.enable and not config.compile.components:
        yield "compile.components", "is []; compile.enable is true: 'model' or 'loss' is needed"
    if config.metrics.enable_wandb and find_spec("wandb") is None:
        yield "metrics.enable_wandb", "is true; the package wandb is not installed"


def _as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else told(value)


def _saving(config: JobConfig, world_size: int | None) -> Iterator[Finding]:
    checkpoint, average = config.checkpoint, config.moving_average
    if checkpoint.load_only:
        for key, default in NOTHING_IS_SAVED.items():
            if value_of(config, key) != default:
                yield key, "is true; it needs checkpoint.load_only to be false"
    if checkpoint.create_seed_checkpoint and world_size not in (None, 1):
        told = f"is true; it needs one process, and there are {world_size}: NGPU=1"
        yield "checkpoint.create_seed_checkpoint", told
    if checkpoint.initial_load_in_hf and not checkpoint.enable:
        yield "checkpoint.initial_load_in_hf", "is true; it needs checkpoint.enable to be true"
    kept = checkpoint.keep_latest_k
    if kept == 1:
        yield "checkpoint.keep_latest_k", "is 1; 0 (keep all) or at least 2 is needed"
    if average.enable and 0 < kept < average.num_checkpoints:
        yield (
            "moving_average.num_checkpoints",
            f"is {average.num_checkpoints}; checkpoint.keep_latest_k keeps {kept}: at most that "
            "many are allowed",
        )


def _recomputing(config: JobConfig) -> Iterator[Finding]:
    settings, unset = config.activation_checkpoint, ActivationCheckpoint()
    name, option = "per_op_sac_force_recompute_mm_shapes_by_fqns", settings.selective_ac_option
    if getattr(settings, name) != getattr(unset, name) and (
        settings.mode != "selective" or option != "op"
    ):
        yield (
            f"activation_checkpoint.{name}",
            f"is {getattr(settings, name)}; it needs mode = 'selective' and "
            "selective_ac_option = 'op'",
        )
    is_number = option.isascii() and option.isdecimal()
    if option not in ("products", "op") and not (is_number and int(option) > 0):
        yield (
            "activation_checkpoint.selective_ac_option",
            f"is {told(option)}; 'products', 'op' or a positive integer is needed",
        )
    compiles = config.compile.enable and "model" in config.compile.components
    if settings.mode == "memory_budget" and not compiles:
        yield (
            "activation_checkpoint.mode",
            "is 'memory_budget'; it needs compile.enable, and 'model' in compile.components",
        )


def _reading(config: JobConfig) -> Iterator[Finding]:
    loader = config.training.dataloader
    ahead, workers = loader.prefetch_factor, loader.num_workers
    if ahead is not None and workers < 1:
        yield (
            "training.dataloader.prefetch_factor",
            f"is {ahead} with {workers} workers; at least 1 of each is needed",
        )


def _watching(config: JobConfig) -> Iterator[Finding]:
    stall_seconds, _ = config.watchdog.limits(config.comm)
    for name, other in (("stall_seconds", "train"), ("slow_seconds", "init")):
        value = getattr(config.watchdog, name)
        bound = getattr(config.comm, f"{other}_timeout_seconds")
        if value != -1 and not 1 <= value < bound:
            yield (
                f"watchdog.{name}",
                f"is {value:g}; -1, or at least 1 and less than comm.{other}_timeout_seconds "
                f"({bound}) is needed",
            )
        elif value != -1 and (needed := most_seconds(value, stall_seconds)) > bound:
            yield (
                f"watchdog.{name}",
                f"is {value:g}; it needs comm.{other}_timeout_seconds, {bound}, to be at least "
                f"{math.ceil(needed)}: other ranks are looked at before the run is ended",
            )


def _profiling(config: JobConfig) -> Iterator[Finding]:
    profiling = config.profiling
    needed = profiling.profiler_warmup + profiling.profiler_active
    if profiling.enable_profiling and profiling.profile_freq < needed:
        yield (
            "profiling.profile_freq",
            f"is {profiling.profile_freq}; at least profiler_warmup + profiler_active, {needed}, "
            "is needed",
        )


def check_schedule(config: JobConfig) -> Iterator[Finding]:
    """Yield what of the learning rate's schedule does not fit the run, or is said twice."""
    scheduler, steps = config.lr_scheduler, config.training.steps
    plan = scheduler.plan if config.curriculum.has_phases else None
    if plan is not None and steps > plan.num_steps:
        most = plan.num_steps
        yield "training.steps", f"is {steps}; the phases make {most}: -1 takes all of them"
    total = scheduler.total_steps if scheduler.total_steps is not None else steps
    if total < steps:
        yield "lr_scheduler.total_steps", f"is {total}; at least training.steps, {steps}, is needed"
    for name in ("warmup_steps", "warmup_tokens") if scheduler.warmup_ratio is not None else ():
        if getattr(scheduler, name) != getattr(LRScheduler(), name):
            yield (
                "lr_scheduler.warmup_ratio",
                f"is {scheduler.warmup_ratio} and {name} is {getattr(scheduler, name)}; one of "
                "them is allowed",
            )
    for key, other in (("warmup_tokens", "warmup_steps"), ("decay_tokens", "decay_ratio")):
        tokens, value = getattr(scheduler, key), getattr(scheduler, other)
        unset = getattr(LRScheduler(), other)
        if tokens != -1 and value != unset:
            yield (
                f"lr_scheduler.{key}",
                f"is {tokens} and {other} is {value}; one of them is allowed: leave out {other}, "
                f"or set {key} to -1",
            )
    if scheduler.decay_type == "inverse_sqrt" and scheduler.min_lr_factor == 0:
        yield (
            "lr_scheduler.min_lr_factor",
            "is 0.0; more than 0 is needed where decay_type is 'inverse_sqrt'",
        )
