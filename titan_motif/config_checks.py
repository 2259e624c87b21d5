"""What a job's values must be, alone and together: each rule gives the key and what is wrong."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from titan_motif.config import JobConfig, value_of
from titan_motif.config_refusals import check_served
from titan_motif.layout import Finding, check_layout
from titan_motif.model.args import FLAVORS, Motif2ModelArgs

_AT_LEAST = {
    "training.steps": 1,
    "training.seq_len": 1,
    "training.gc_freq": 1,
    "training.builtin_vocab_size": 300,
    "training.dataloader.num_workers": 0,
    "metrics.log_freq": 1,
    "checkpoint.interval": 1,
    "checkpoint.keep_latest_k": 0,
    "checkpoint.load_step": -1,
    "validation.local_batch_size": 1,
    "validation.seq_len": 1,
    "validation.freq": 1,
    "lr_scheduler.warmup_steps": 0,
    "summary.sample_tokens": 0,
    "comm.init_timeout_seconds": 1,
    "comm.train_timeout_seconds": 1,
}
_AT_LEAST_1_OR_MINUS_1 = {
    "training.local_batch_size": "global_batch_size / data-parallel ranks",
    "training.global_batch_size": "local_batch_size x data-parallel ranks",
    "validation.steps": "the whole split",
}
_BETWEEN = {
    "optimizer.beta1": (0.0, 1.0),
    "optimizer.beta2": (0.0, 1.0),
    "optimizer.weight_decay": (0.0, 1.0),
    "lr_scheduler.min_lr_factor": (0.0, 1.0),
}
_ABOVE_ZERO = ("optimizer.lr", "optimizer.eps", "training.max_norm")


def check_values(config: JobConfig, world_size: int | None) -> Iterator[Finding]:
    """Yield every finding, the most basic first; a job without findings can start.

    Args:
        world_size: number of processes; None leaves out what depends on it
    """
    yield from _ranges(config)
    yield from check_served(config)
    yield from _model(config)
    yield from _schedule(config)
    yield from _files(config)
    if world_size is not None and config.model.flavor in FLAVORS:
        yield from check_layout(config, model_args(config), world_size)


def model_args(config: JobConfig) -> Motif2ModelArgs:
    """Return the flavor's arguments with the job's overrides; ValueError if they do not fit."""
    args = dataclasses.replace(FLAVORS[config.model.flavor])
    args.override(dataclasses.asdict(config.model.args))
    return args


def _ranges(config: JobConfig) -> Iterator[Finding]:
    for key, least in _AT_LEAST.items():
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
    if config.checkpoint.keep_latest_k == 1:
        yield "checkpoint.keep_latest_k", "is 1; 0 (keep all) or at least 2 is needed"


def _model(config: JobConfig) -> Iterator[Finding]:
    if config.model.flavor not in FLAVORS:
        allowed = ", ".join(FLAVORS)
        yield "model.flavor", f"is {config.model.flavor!r}; one of {allowed} is needed"
        return
    try:
        args = model_args(config)
    except ValueError as error:
        yield "model.args", f"on flavor {config.model.flavor}: {error}"
        return
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


def _schedule(config: JobConfig) -> Iterator[Finding]:
    scheduler, steps = config.lr_scheduler, config.training.steps
    total = scheduler.total_steps if scheduler.total_steps is not None else steps
    if total < steps:
        yield "lr_scheduler.total_steps", f"is {total}; at least training.steps, {steps}, is needed"
    if scheduler.decay_ratio is not None and not 0 <= scheduler.decay_ratio <= 1:
        yield "lr_scheduler.decay_ratio", f"is {scheduler.decay_ratio}; 0.0 to 1.0 is allowed"


def _files(config: JobConfig) -> Iterator[Finding]:
    if config.training.dataset == "prepared":
        for split in ("train", "validation"):
            path = Path(config.training.dataset_path) / split / "tokens.npy"
            if not path.is_file():
                yield "training.dataset_path", f"is {config.training.dataset_path!r}; no {path}"
        tokenizer = Path(config.model.hf_assets_path) / "tokenizer.json"
        if not tokenizer.is_file():
            yield "model.hf_assets_path", f"is {config.model.hf_assets_path!r}; no {tokenizer}"
    initial = config.checkpoint.initial_load_path
    if initial is not None and not Path(initial).is_dir():
        yield "checkpoint.initial_load_path", f"is {initial!r}; no such folder"
