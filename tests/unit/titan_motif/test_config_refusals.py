"""Every setting is either served or refused: nothing of torchtitan's is ignored silently."""

import dataclasses
import typing
from pathlib import Path

import pytest
import torch

import titan_motif.device  # noqa: F401
from titan_motif import check_config
from titan_motif.config import JobConfig
from titan_motif.config_keys import all_keys, value_of
from titan_motif.config_refusals import check_served, reason_against
from titan_motif.layout import check_layout
from titan_motif.model import FLAVORS

ROOT = Path(__file__).resolve().parents[3]

# A setting that is not here has to be refused. Adding one says: it was looked up where it acts.
SERVED = {
    "step_check": "max_skipped_steps loss_spike spike_z_score spike_window",
    "watchdog": "enable stall_seconds slow_seconds",
    "job": "config_file dump_folder description print_config save_config_file",
    "profiling": "enable_profiling save_traces_folder profile_freq profiler_active profiler_warmup "
    "enable_memory_snapshot save_memory_snapshot_folder",
    "metrics": "log_freq enable_tensorboard disable_color_printing save_tb_folder "
    "save_for_all_ranks enable_wandb noise_ratio_bound",
    "model": "flavor hf_assets_path kernels attention converters print_after_conversion",
    "model.args": "dim n_layers n_heads n_kv_heads head_dim hidden_dim grouped_ratio vocab_size "
    "max_seq_len rope_theta lam_init",
    "optimizer": "name lr beta1 beta2 eps weight_decay implementation qk_clip qk_clip_threshold "
    "qk_clip_interval qk_clip_balance",
    "optimizer.muon": "adamw_lr momentum nesterov scale coefficients polar_express_steps method "
    "mode chunk_size owner_scope muon_patterns adamw_patterns",
    "lr_scheduler": "warmup_steps warmup_tokens warmup_ratio total_steps decay_ratio decay_tokens "
    "decay_type min_lr_factor",
    "training": "dataset dataset_path builtin_vocab_size local_batch_size global_batch_size "
    "seq_len max_norm steps enable_cpu_offload dtype mixed_precision_param "
    "mixed_precision_reduce mask_documents restart_positions gc_freq gc_debug",
    "curriculum": "enable sources phases total_tokens local_batch_tokens batch_multiple caps",
    "sft": "enable data epochs chat_template reasoning too_long bad_samples special_tokens "
    "validation_share messages_field",
    "training.dataloader": "num_workers pin_memory prefetch_factor",
    "parallelism": "data_parallel_replicate_degree data_parallel_shard_degree "
    "fsdp_reshard_after_forward tensor_parallel_degree",
    "checkpoint": "enable folder interval initial_load_path initial_load_model_only "
    "initial_load_in_hf last_save_model_only last_save_in_hf export_dtype async_mode keep_latest_k "
    "load_step exclude_from_loading enable_first_step_checkpoint create_seed_checkpoint load_only",
    "activation_checkpoint": "mode selective_ac_option "
    "per_op_sac_force_recompute_mm_shapes_by_fqns early_stop memory_budget "
    "visualize_memory_budget_pareto preserve_rng_state determinism_check debug",
    "moving_average": "enable interval_tokens num_checkpoints",
    "compile": "enable components backend",
    "loss": "chunk_tokens z_loss",
    "quantize.linear.float8": "enable_fsdp_float8_all_gather recipe_name filter_fqns emulate "
    "precompute_float8_dynamic_scale_for_fsdp",
    "comm": "init_timeout_seconds train_timeout_seconds trace_buf_size save_traces_folder "
    "save_traces_file_prefix",
    "experimental": "custom_import",
    "evaluation": "enable freq tasks num_fewshot limit batch_size max_length max_new_tokens chat "
    "timeout_seconds",
    "validation": "enable local_batch_size seq_len freq steps",
    "debug": "seed deterministic deterministic_warn_only",
    "summary": "enable sample_tokens",
}
IN_LAYOUT = {
    "parallelism.pipeline_parallel_degree",
    "parallelism.context_parallel_degree",
    "parallelism.expert_parallel_degree",
    "parallelism.disable_loss_parallel",
    "parallelism.enable_async_tensor_parallel",
}


def served() -> set[str]:
    return {f"{section}.{name}" for section, names in SERVED.items() for name in names.split()}


def other_value(value, kind):
    """A value of the kind, and not the one given."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    choices = [c for c in typing.get_args(kind) if isinstance(c, str) and c != value]
    if choices:
        return choices[0]
    return ["something"] if isinstance(value, list) else "something"


def kind_of(key: str):
    kind = JobConfig
    for name in key.split("."):
        kind = {field.name: field.type for field in dataclasses.fields(kind)}[name]
    return kind


def test_every_setting_is_served_or_refused():
    refused = {key for key in all_keys() if reason_against(key)} | IN_LAYOUT
    assert served() | refused == set(all_keys())
    assert not served() & refused


@pytest.mark.parametrize("key", sorted(set(all_keys()) - served()))
def test_a_setting_that_is_not_served_must_keep_its_default(key: str):
    config = JobConfig()
    *sections, name = key.split(".")
    section = value_of(config, ".".join(sections))
    value = other_value(getattr(section, name), kind_of(key))
    setattr(section, name, value)
    checked = (
        check_layout(config, FLAVORS["debug"], 1)
        if key in IN_LAYOUT
        else check_served(config, runs_here=True)
    )
    found = dict(checked)[key]
    assert found.startswith(f"is {value!r}; only " if key not in IN_LAYOUT else "is ")
    assert "\n" not in found


def test_the_defaults_are_served():
    assert not list(check_served(JobConfig(), runs_here=True))


BAD_VALUES = {
    "unknown component": (["--compile.components", "model,los"], "names 'los'", "'loss' is"),
    "unknown backend": (["--compile.backend", "induktor"], "backend is 'induktor'", "inductor"),
    "unknown state": (["--checkpoint.exclude_from_loading", "optim"], "'optim'", "'optimizer'"),
    "simulated ranks": (["--comm.mode", "fake_backend"], "mode is 'fake_backend'", "'default'"),
    "another module": (["--job.custom_config_module", "mine"], "is 'mine'", "only '' is allowed"),
    "other validation data": (["--validation.dataset", "c4"], "is 'c4'", "training.dataset_path"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU serves Triton")
def test_triton_kernels_are_refused_on_a_cpu(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["--job.config_file", "train_configs/debug.toml", "--model.kernels", "triton"]
    assert check_config.main(arguments) == 2
    expected = "model.kernels is 'triton'; that needs a GPU: 'auto' or 'torch' is allowed here"
    assert capsys.readouterr().err == f"error: command line: {expected}\n"


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_value_that_is_not_served_is_answered_with_one_line(case: str, capsys, monkeypatch):
    arguments, found, allowed = BAD_VALUES[case]
    monkeypatch.chdir(ROOT)
    assert check_config.main(["--job.config_file", "train_configs/debug.toml", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: command line: {arguments[0][2:]} ")
    assert found in line
    assert allowed in line
