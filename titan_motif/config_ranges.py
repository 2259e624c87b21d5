"""What a setting may be by itself: the range of every number, and what no text may be."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from titan_motif.components.curriculum.schedule import MAX_STEPS, MAX_TOKENS
from titan_motif.components.preparation.prepare import MAX_VALIDATION_SHARE
from titan_motif.config import JobConfig
from titan_motif.config_keys import Finding, all_keys, value_of
from titan_motif.config_types import LARGEST_NUMBER, told
from titan_motif.sft import counts_steps_later


class Range(NamedTuple):
    """The values that a number may have."""

    low: float
    high: float
    is_above: bool = False
    """Whether `low` itself is not allowed."""
    is_below: bool = False
    """Whether `high` itself is not allowed."""
    minus_one: str | None = None
    """What -1 stands for; None where it stands for nothing."""

    def problem(self, value: float) -> str | None:
        """Return what is wrong with a value, and what is allowed."""
        if self.minus_one is not None and value == -1:
            return None
        is_low = value < self.low or (self.is_above and value == self.low)
        is_high = value > self.high or (self.is_below and value == self.high)
        if not (is_low or is_high):
            return None
        if isinstance(self.high, float) and self.high <= 1:
            low, high = "above " * self.is_above, "below " * self.is_below
            return f"is {value}; {low}{self.low} to {high}{self.high} is allowed"
        if is_high:
            return f"is {told(value)}; at most {self.high:,} is allowed"
        also = f"-1 ({self.minus_one}) or " if self.minus_one is not None else ""
        least = "more than" if self.is_above else "at least"
        return f"is {told(value)}; {also}{least} {self.low} is needed"


_MANY = 1_000_000_000
"""More than there are of anything that is counted, tokens aside."""
_COUNT, _COUNT_OR_NONE = Range(1, _MANY), Range(0, _MANY)
_STEPS = Range(1, MAX_STEPS)
_SIZE = Range(1, 2**24)
_SHARE = Range(0.0, 1.0)
_MEAN = Range(0.0, 1.0, is_below=True)
_POSITIVE = Range(0, LARGEST_NUMBER, is_above=True)
_SECONDS = Range(1, 366 * 24 * 3600)

RANGES = {
    "activation_checkpoint.memory_budget": _SHARE,
    "checkpoint.interval": _COUNT,
    "checkpoint.keep_latest_k": _COUNT_OR_NONE,
    "checkpoint.load_step": Range(0, _MANY, minus_one="the newest"),
    "comm.init_timeout_seconds": _SECONDS,
    "comm.train_timeout_seconds": _SECONDS,
    "comm.trace_buf_size": _COUNT_OR_NONE,
    "curriculum.total_tokens": Range(1, MAX_TOKENS, minus_one="not given"),
    "curriculum.local_batch_tokens": Range(1, MAX_TOKENS, minus_one="one micro-batch a step"),
    "curriculum.batch_multiple": _SIZE,
    "debug.seed": Range(0, 2**63 - 1),
    "evaluation.freq": _COUNT,
    "evaluation.num_fewshot": _COUNT_OR_NONE,
    "evaluation.limit": _COUNT,
    "evaluation.batch_size": _SIZE,
    "evaluation.max_length": Range(2, _MANY),
    "evaluation.max_new_tokens": _COUNT,
    "evaluation.timeout_seconds": _SECONDS,
    "loss.chunk_tokens": _COUNT,
    "loss.z_loss": _SHARE,
    "lr_scheduler.warmup_steps": Range(0, MAX_STEPS),
    "lr_scheduler.total_steps": _STEPS,
    "lr_scheduler.decay_ratio": _SHARE,
    "lr_scheduler.min_lr_factor": _SHARE,
    "lr_scheduler.warmup_tokens": Range(0, MAX_TOKENS, minus_one="warmup_steps"),
    "lr_scheduler.warmup_ratio": _SHARE,
    "lr_scheduler.decay_tokens": Range(0, MAX_TOKENS, minus_one="decay_ratio"),
    "metrics.log_freq": _COUNT,
    "metrics.noise_ratio_bound": _POSITIVE,
    "model.args.dim": _SIZE,
    "model.args.n_layers": Range(1, 10_000),
    "model.args.n_heads": _SIZE,
    "model.args.n_kv_heads": _SIZE,
    "model.args.head_dim": _SIZE,
    "model.args.hidden_dim": _SIZE,
    "model.args.grouped_ratio": Range(0, 2**24),
    "model.args.vocab_size": _SIZE,
    "model.args.max_seq_len": Range(1, 2**30),
    "model.args.rope_theta": Range(1, 1e12, is_above=True),
    "model.args.lam_init": Range(-1.0, 1.0, is_above=True, is_below=True),
    "moving_average.interval_tokens": Range(1, MAX_TOKENS),
    "moving_average.num_checkpoints": Range(2, 10_000),
    "optimizer.lr": _POSITIVE,
    "optimizer.beta1": _MEAN,
    "optimizer.beta2": _MEAN,
    "optimizer.eps": Range(0, 1, is_above=True),
    "optimizer.weight_decay": _SHARE,
    "optimizer.qk_clip_threshold": _POSITIVE,
    "optimizer.qk_clip_interval": _COUNT,
    "optimizer.muon.adamw_lr": _POSITIVE,
    "optimizer.muon.momentum": _MEAN,
    "optimizer.muon.polar_express_steps": Range(1, 100),
    "optimizer.muon.chunk_size": Range(1, _MANY, minus_one="4 for each rank"),
    "optimizer.muon.owner_scope": Range(1, _MANY, minus_one="the fastest"),
    "profiling.profile_freq": _COUNT,
    "profiling.profiler_active": _COUNT,
    "profiling.profiler_warmup": _COUNT_OR_NONE,
    "sft.epochs": Range(0, 10_000, is_above=True),
    "sft.validation_share": Range(0.0, MAX_VALIDATION_SHARE),
    "step_check.max_skipped_steps": _COUNT_OR_NONE,
    "step_check.spike_window": Range(2, 10_000_000),
    "step_check.spike_z_score": _POSITIVE,
    "summary.sample_tokens": Range(0, 2**20),
    "training.global_batch_size": Range(
        1, 2**24, minus_one="local_batch_size x data-parallel ranks"
    ),
    "training.local_batch_size": Range(
        1, 2**24, minus_one="global_batch_size / data-parallel ranks"
    ),
    "training.seq_len": Range(1, 2**30),
    "training.max_norm": _POSITIVE,
    "training.steps": _STEPS,
    "training.gc_freq": _COUNT,
    "training.builtin_vocab_size": Range(300, 2**24),
    "training.dataloader.num_workers": Range(0, 1024),
    "training.dataloader.prefetch_factor": Range(1, 1024),
    "validation.local_batch_size": _SIZE,
    "validation.seq_len": Range(1, 2**30),
    "validation.freq": _COUNT,
    "validation.steps": Range(1, _MANY, minus_one="the whole split"),
}
"""Of every number that is served; what depends on others is checked with them: parallel degrees
(titan_motif.layout), the watchdog's seconds (config_checks), sources and phases
(config_curriculum). The upper bounds are far from anything that makes sense: beyond them a job
would end in its ranks, with an overflow or without memory."""

MAY_BE_BLANK = ("job.description",)


def check_ranges(config: JobConfig, keys: Iterable[str] = RANGES) -> Iterator[Finding]:
    """Yield every number that is out of its range; None is in every one."""
    for key in keys:
        value = value_of(config, key)
        if key == "training.steps" and counts_steps_later(config):
            continue
        for one in value if isinstance(value, list) else (value,):
            problem = RANGES[key].problem(one) if one is not None else None
            if problem is not None:
                yield key, problem
                break


def check_texts(config: JobConfig) -> Iterator[Finding]:
    """Yield every text that is blank where one is needed, and every list that repeats one."""
    defaults = JobConfig()
    for key in all_keys():
        value = value_of(config, key)
        if isinstance(value, list) and value and isinstance(value[0], str):
            yield from _entries(key, value)
        elif isinstance(value, str) and not value.strip() and key not in MAY_BE_BLANK:
            default = value_of(defaults, key)
            if default is None:
                yield key, f"is {value!r}; a text is needed, or none: leave it out"
            elif value != default:
                example = f", such as {default!r}" if default else " or ''"
                yield key, f"is {value!r}; a text is needed{example}"


def _entries(key: str, texts: list[str]) -> Iterator[Finding]:
    for i, text in enumerate(texts):
        if not text.strip():
            yield key, f"is {told(texts)}; entry {i + 1} is blank, and a text is needed"
        elif text in texts[:i]:
            yield key, f"is {told(texts)}; it names {text!r} twice, and once is needed"
