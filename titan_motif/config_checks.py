"""What a job's values must be, alone and together: each rule gives the key and what is wrong."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from titan_motif.config import JobConfig, Metrics
from titan_motif.config_curriculum import check_curriculum, check_source_files
from titan_motif.config_evaluation import check_evaluation
from titan_motif.config_float8 import check_float8
from titan_motif.config_keys import Finding, value_of
from titan_motif.config_optimizer import check_muon_patterns, check_optimizer
from titan_motif.config_places import check_places
from titan_motif.config_ranges import check_ranges, check_texts
from titan_motif.config_refusals import check_served
from titan_motif.config_sft import check_inputs, check_packed, check_sft
from titan_motif.config_together import check_schedule, check_together
from titan_motif.config_types import nearest, told
from titan_motif.corpus.prepare import GROUPS as BUILTIN_GROUPS
from titan_motif.device import device_type
from titan_motif.kernels import attention_problem
from titan_motif.layout import check_layout
from titan_motif.model import FLAVORS, Motif2ModelArgs
from titan_motif.network import model_args


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
    yield from check_ranges(config)
    yield from check_texts(config)
    yield from check_served(config, runs_here)
    yield from check_together(config, world_size)
    yield from check_optimizer(config)
    yield from _model(config, runs_here)
    yield from check_schedule(config)
    if runs_here:
        yield from check_places(config)
    if runs_here and not config.sft.enable:
        yield from _files(config)
    if has_paths:
        yield from _paths(config)
    if world_size is not None and config.model.flavor in FLAVORS:
        yield from check_layout(config, model_args(config), world_size)
    if runs_here and config.sft.enable:  # what is packed last, by a job that is right otherwise
        yield from check_packed(config)
        yield from _files(config)


def _model(config: JobConfig, runs_here: bool) -> Iterator[Finding]:
    if config.model.flavor not in FLAVORS:
        allowed = ", ".join(FLAVORS)
        near = nearest(config.model.flavor, FLAVORS)
        yield "model.flavor", f"is {told(config.model.flavor)}; one of {allowed} is needed{near}"
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
    option, mode = (
        getattr(config.activation_checkpoint, name) for name in ("selective_ac_option", "mode")
    )
    if mode == "selective" and option.isdecimal() and int(option) > args.n_layers:
        yield (
            "activation_checkpoint.selective_ac_option",
            f"is {option!r}; there are {args.n_layers} blocks, none of which it would reach: 1 to "
            f"{args.n_layers} is allowed",
        )
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


def _paths(config: JobConfig) -> Iterator[Finding]:
    """Yield what is not there of what a job needs to have its data prepared, or to begin from."""
    assets = config.model.hf_assets_path
    if config.training.dataset == "prepared" and not os.path.isfile(f"{assets}/tokenizer.json"):
        yield "model.hf_assets_path", f"is {told(assets)}; it holds no tokenizer.json"
    initial = config.checkpoint.initial_load_path
    if initial is not None and not os.path.isdir(initial):  # false of too long a name, too
        yield "checkpoint.initial_load_path", f"is {told(initial)}; no such folder"
    if config.sft.enable:
        yield from check_inputs(config)


def _files(config: JobConfig) -> Iterator[Finding]:
    assets = config.model.hf_assets_path
    if config.training.dataset == "prepared":
        yield from check_source_files(config, model_args(config).vocab_size)
    else:
        own = Path(config.training.dataset_path) / "tokenizer"
        if Path(assets).resolve() != own.resolve():
            yield (
                "model.hf_assets_path",
                f"is {told(assets)}; the built-in corpus is written in the tokens of {str(own)!r}: "
                "'auto' is that folder",
            )
        for source in config.curriculum.sources if config.curriculum.enable else ():
            folder = Path(config.training.dataset_path) / source.path
            if source.path not in BUILTIN_GROUPS and not os.path.isdir(folder / "train"):
                yield (
                    "curriculum.sources",
                    f"has {source.name!r}; its path {source.path!r} is none of the built-in "
                    f"corpus, which has {', '.join(BUILTIN_GROUPS)}",
                )
