"""What a job's values must be, alone and together: each rule gives the key and what is wrong."""

import dataclasses
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from titan_motif.config import ActivationCheckpoint, JobConfig, LRScheduler, Metrics, Optimizer
from titan_motif.config_curriculum import check_curriculum, check_source_files
from titan_motif.config_evaluation import check_evaluation
from titan_motif.config_float8 import check_float8
from titan_motif.config_keys import Finding, value_of
from titan_motif.config_optimizer import check_muon_patterns, check_optimizer
from titan_motif.config_refusals import check_served
from titan_motif.config_sft import check_packed, check_sft
from titan_motif.corpus.prepare import GROUPS as BUILTIN_GROUPS
from titan_motif.device import device_type
from titan_motif.kernels import attention_problem
from titan_motif.layout import check_layout
from titan_motif.model import FLAVORS, Motif2ModelArgs
from titan_motif.network import model_args
from titan_motif.sft import counts_steps_later

_AT_LEAST = {
    "training.steps": 1,
    "training.seq_len": 1,
    "training.gc_freq": 1,
    "moving_average.interval_tokens": 1,
    "moving_average.num_checkpoints": 2,
    "training.builtin_vocab_size": 300,
    "training.dataloader.num_workers": 0,
    "profiling.profile_freq": 1,
    "profiling.profiler_active": 1,
    "profiling.profiler_warmup": 0,
    "metrics.log_freq": 1,
    "checkpoint.interval": 1,
    "checkpoint.keep_latest_k": 0,
    "checkpoint.load_step": -1,
    "validation.local_batch_size": 1,
    "validation.seq_len": 1,
    "validation.freq": 1,
    "evaluation.freq": 1,
    "evaluation.batch_size": 1,
    "evaluation.timeout_seconds": 1,
    "lr_scheduler.warmup_steps": 0,
    "optimizer.muon.polar_express_steps": 1,
    "step_check.max_skipped_steps": 0,
    "step_check.spike_window": 2,
    "optimizer.qk_clip_interval": 1,
    "lr_scheduler.warmup_tokens": -1,
    "lr_scheduler.decay_tokens": -1,
    "loss.chunk_tokens": 1,
    "summary.sample_tokens": 0,
    "comm.init_timeout_seconds": 1,
    "comm.train_timeout_seconds": 1,
    "comm.trace_buf_size": 0,
}
_AT_LEAST_1_OR_MINUS_1 = {
    "optimizer.muon.chunk_size": "4 for each rank",
    "optimizer.muon.owner_scope": "the fastest",
    "training.local_batch_size": "global_batch_size / data-parallel ranks",
    "training.global_batch_size": "local_batch_size x data-parallel ranks",
    "validation.steps": "the whole split",
}
_BETWEEN = {
    "optimizer.beta1": (0.0, 1.0),
    "optimizer.beta2": (0.0, 1.0),
    "optimizer.weight_decay": (0.0, 1.0),
    "lr_scheduler.min_lr_factor": (0.0, 1.0),
    "activation_checkpoint.memory_budget": (0.0, 1.0),
    "loss.z_loss": (0.0, 1.0),
}
_ABOVE_ZERO = (
    "optimizer.lr",
    "optimizer.eps",
    "optimizer.qk_clip_threshold",
    "training.max_norm",
    "metrics.noise_ratio_bound",
    "step_check.spike_z_score",
)


def check_values(
    config: JobConfig, world_size: int | None, runs_here: bool = True, has_paths: bool = True
) -> Iterator[Finding]:
    """Yield every finding, the most basic first; a job without findings can start.

    Args:
        world_size:  number of processes; None leaves out what depends on it
        runs_here:   whether the job's data and device have to be there
        has_paths:   whether what it begins from and its tokenizer have to
    """
    yield from check_curriculum(config)
    yield from check_sft(config)
    yield from _ranges(config)
    yield from check_served(config, runs_here)
    yield from _together(config)
    yield from check_optimizer(config)
    yield from _model(config, runs_here)
    yield from _schedule(config)
    if runs_here and not config.sft.enable:
        yield from _files(config)
    if has_paths:
        yield from _paths(config)
    if world_size is not None and config.model.flavor in FLAVORS:
        yield from check_layout(config, model_args(config), world_size)
    if runs_here and config.sft.enable:  # what is packed last, by a job that is right otherwise
        yield from check_packed(config)
        yield from _files(config)


def _ranges(config: JobConfig) -> Iterator[Finding]:
    for key, least in _AT_LEAST.items():
        if key == "training.steps" and counts_steps_later(config):
            continue
        if value_of(config, key) < least:
            yield key, f"is {value_of(config, key)}; at least {least} is needed"
    for key, meaning in _AT_LEAST_1_OR_MINUS_1.items():
        if value_of(config, key) != -1 and value_of(config, key) < 1:
            yield key, f"is {value_of(config, key)}; -1 ({meaning}) or at least 1 is needed"
    for key, (low, high) in _BETWEEN.items():
        if not low <= value_of(config, key) <= high:
            yield key, f"is {value_of(config, key)}; {low} to {high} is allowed"
    for key in _ABOVE_ZERO:
        if not value_of(config, key) > 0:
            yield key, f"is {value_of(config, key)}; more than 0 is needed"
    for name, other in (("stall_seconds", "train"), ("slow_seconds", "init")):
        value = getattr(config.watchdog, name)
        bound = getattr(config.comm, f"{other}_timeout_seconds")
        if value != -1 and not 0 < value < bound:
            yield (
                f"watchdog.{name}",
                f"is {value:g}; -1, or more than 0 and less than comm.{other}_timeout_seconds "
                f"({bound}) is needed",
            )
    if config.checkpoint.keep_latest_k == 1:
        yield "checkpoint.keep_latest_k", "is 1; 0 (keep all) or at least 2 is needed"
    average = config.moving_average
    if average.enable and not config.checkpoint.enable:
        yield "moving_average.enable", "is true; it needs checkpoint.enable"
    kept = config.checkpoint.keep_latest_k
    if average.enable and 0 < kept < average.num_checkpoints:
        yield (
            "moving_average.num_checkpoints",
            f"is {average.num_checkpoints}; checkpoint.keep_latest_k keeps {kept}",
        )
    checkpointing, unset = config.activation_checkpoint, ActivationCheckpoint()
    name = "per_op_sac_force_recompute_mm_shapes_by_fqns"
    if getattr(checkpointing, name) != getattr(unset, name) and (
        checkpointing.mode != "selective" or checkpointing.selective_ac_option != "op"
    ):
        yield (
            f"activation_checkpoint.{name}",
            f"is {getattr(checkpointing, name)}; it needs mode = 'selective' and "
            "selective_ac_option = 'op'",
        )
    if config.debug.seed is not None and config.debug.seed < 0:
        yield "debug.seed", f"is {config.debug.seed}; at least 0 is needed"
    option = config.activation_checkpoint.selective_ac_option
    if option not in ("products", "op") and not (option.isdecimal() and int(option) > 0):
        yield (
            "activation_checkpoint.selective_ac_option",
            f"is {option!r}; 'products', 'op' or a positive integer is needed",
        )


def _together(config: JobConfig) -> Iterator[Finding]:
    """Yield each setting that does nothing, or ends the run, without another one."""
    checkpoint, profiling = config.checkpoint, config.profiling
    for key, other in (
        ("last_save_in_hf", "last_save_model_only"),
        ("initial_load_in_hf", "initial_load_model_only"),
        ("create_seed_checkpoint", "enable"),
    ):
        if getattr(checkpoint, key) and not getattr(checkpoint, other):
            yield f"checkpoint.{key}", f"is true; it needs checkpoint.{other} to be true as well"
    for key in ("initial_load_path", "initial_load_in_hf"):
        value = getattr(checkpoint, key)
        if value and not checkpoint.enable:
            yield (
                f"checkpoint.{key}",
                f"is {value!r}; nothing is loaded unless checkpoint.enable is true",
            )
    compiles = config.compile.enable and "model" in config.compile.components
    if config.activation_checkpoint.mode == "memory_budget" and not compiles:
        yield (
            "activation_checkpoint.mode",
            "is 'memory_budget'; it needs compile.enable, and 'model' in compile.components",
        )
    loader = config.training.dataloader
    ahead, workers = loader.prefetch_factor, loader.num_workers
    if ahead is not None and (ahead < 1 or workers < 1):
        yield (
            "training.dataloader.prefetch_factor",
            f"is {ahead} with {workers} workers; at least 1 of each is needed",
        )
    needed = profiling.profiler_warmup + profiling.profiler_active
    if profiling.enable_profiling and profiling.profile_freq < needed:
        yield (
            "profiling.profile_freq",
            f"is {profiling.profile_freq}; at least profiler_warmup + profiler_active, {needed}, "
            "is needed",
        )
    if config.training.restart_positions and not config.training.mask_documents:
        yield "training.restart_positions", "is true; it needs training.mask_documents to be true"
    optimizer, unset = config.optimizer, Optimizer()
    for name in ("qk_clip_threshold", "qk_clip_interval", "qk_clip_balance"):
        value = getattr(optimizer, name)
        if not optimizer.qk_clip and value != getattr(unset, name):
            yield f"optimizer.{name}", f"is {value!r}; it needs optimizer.qk_clip to be true"
    if config.metrics.enable_wandb and find_spec("wandb") is None:
        yield "metrics.enable_wandb", "is true; the package wandb is not installed"


def _model(config: JobConfig, runs_here: bool) -> Iterator[Finding]:
    if config.model.flavor not in FLAVORS:
        allowed = ", ".join(FLAVORS)
        yield "model.flavor", f"is {config.model.flavor!r}; one of {allowed} is needed"
        return
    try:
        args = model_args(config)
    except ValueError as error:
        chosen = [n for n, v in dataclasses.asdict(config.model.args).items() if v is not None]
        named = str(error).split()[0]
        key = named if named in chosen else chosen[-1]
        yield f"model.args.{key}", f"does not fit flavor {config.model.flavor}: {error}"
        return
    yield from _attention(config, args, runs_here)
    yield from check_float8(config, args, runs_here)
    yield from check_evaluation(config, args, runs_here)
    longest = args.max_seq_len
    for key in ("training.seq_len", "validation.seq_len"):
        if value_of(config, key) > longest:
            yield key, f"is {value_of(config, key)}; {config.model.flavor} allows at most {longest}"
    vocab = config.training.builtin_vocab_size
    if config.training.dataset == "builtin" and vocab > args.vocab_size:
        yield (
            "training.builtin_vocab_size",
            (f"is {vocab}; the model's embedding has {args.vocab_size} entries"),
        )
    yield from check_muon_patterns(config, args)


def _attention(config: JobConfig, args: Motif2ModelArgs, runs_here: bool) -> Iterator[Finding]:
    bound = config.metrics.noise_ratio_bound
    if args.grouped_ratio == 0 and bound != Metrics.noise_ratio_bound:
        yield "metrics.noise_ratio_bound", f"is {bound}; with grouped_ratio 0 there is no noise map"
    if config.model.attention != "triton" or not runs_here:
        return
    if args.grouped_ratio == 0:
        problem = "plain attention (grouped_ratio 0) runs SDPA"
    else:
        is_single = config.training.mixed_precision_param == "float32"
        dtype = torch.float32 if is_single else torch.bfloat16
        problem = attention_problem(dtype, args.head_dim, torch.device(device_type))
    if problem is not None:
        yield "model.attention", f"is 'triton'; {problem}: 'auto' or 'sdpa' is allowed here"


def _schedule(config: JobConfig) -> Iterator[Finding]:
    scheduler, steps = config.lr_scheduler, config.training.steps
    plan = scheduler.plan if config.curriculum.has_phases else None
    if plan is not None and steps > plan.num_steps:
        most = plan.num_steps
        yield "training.steps", f"is {steps}; the phases make {most}: -1 takes all of them"
    total = scheduler.total_steps if scheduler.total_steps is not None else steps
    if total < steps:
        yield "lr_scheduler.total_steps", f"is {total}; at least training.steps, {steps}, is needed"
    if scheduler.decay_ratio is not None and not 0 <= scheduler.decay_ratio <= 1:
        yield "lr_scheduler.decay_ratio", f"is {scheduler.decay_ratio}; 0.0 to 1.0 is allowed"
    if scheduler.warmup_ratio is not None and not 0 <= scheduler.warmup_ratio <= 1:
        yield "lr_scheduler.warmup_ratio", f"is {scheduler.warmup_ratio}; 0.0 to 1.0 is allowed"
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


def _paths(config: JobConfig) -> Iterator[Finding]:
    """Yield what is not there of what a job needs to have its data prepared, or to begin from."""
    assets = config.model.hf_assets_path
    if config.training.dataset == "prepared" and not (Path(assets) / "tokenizer.json").is_file():
        yield "model.hf_assets_path", f"is {assets!r}; it holds no tokenizer.json"
    initial = config.checkpoint.initial_load_path
    if initial is not None and not Path(initial).is_dir():
        yield "checkpoint.initial_load_path", f"is {initial!r}; no such folder"


def _files(config: JobConfig) -> Iterator[Finding]:
    assets = config.model.hf_assets_path
    if config.training.dataset == "prepared":
        yield from check_source_files(config, model_args(config).vocab_size)
    else:
        own = Path(config.training.dataset_path) / "tokenizer"
        if Path(assets).resolve() != own.resolve():
            yield (
                "model.hf_assets_path",
                f"is {assets!r}; the built-in corpus is written in the tokens of {str(own)!r}: "
                "'auto' is that folder",
            )
        for source in config.curriculum.sources if config.curriculum.enable else ():
            folder = Path(config.training.dataset_path) / source.path
            if source.path not in BUILTIN_GROUPS and not (folder / "train").is_dir():
                yield (
                    "curriculum.sources",
                    f"has {source.name!r}; its path {source.path!r} is none of the built-in "
                    f"corpus, which has {', '.join(BUILTIN_GROUPS)}",
                )
