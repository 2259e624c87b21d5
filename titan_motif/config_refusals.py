"""What torchtitan's sections offer and this trainer does not serve: refused, never ignored."""

from collections.abc import Iterator

import torch

from titan_motif.config import JobConfig
from titan_motif.config_keys import Finding, all_keys, value_of
from titan_motif.config_types import nearest, told
from titan_motif.kernels import default_implementation

_NO_PIPELINE = "there is no pipeline parallelism here"
_NO_CONTEXT = "there is no context parallelism here"
_NO_EXPERTS = "Motif-2 has no experts"
NOT_SERVED = {
    "job.custom_config_module": "run_train.sh always reads titan_motif.config",
    "model.name": "it is the one train spec of this trainer",
    "model.tokenizer_path": "use model.hf_assets_path",
    "optimizer.early_step_in_backward": "gradients are clipped, which needs all of them at once",
    "training.dataloader.persistent_workers": "the data have no end, so that workers never restart",
    "validation.dataset": "validation reads the validation split of training.dataset_path",
    "validation.dataset_path": "validation reads the validation split of training.dataset_path",
    "validation.dataloader": "the validation split is read without workers",
    "checkpoint.enable_ft_dataloader_checkpoints": "there is no fault tolerance here",
    "checkpoint.initial_load_in_hf_quantized": "Motif-2's adapter reads no quantized weights",
    "parallelism.module_fqns_per_model_part": _NO_PIPELINE,
    "parallelism.pipeline_parallel_first_stage_less_layers": _NO_PIPELINE,
    "parallelism.pipeline_parallel_last_stage_less_layers": _NO_PIPELINE,
    "parallelism.pipeline_parallel_layers_per_stage": _NO_PIPELINE,
    "parallelism.pipeline_parallel_schedule": _NO_PIPELINE,
    "parallelism.pipeline_parallel_schedule_csv": _NO_PIPELINE,
    "parallelism.pipeline_parallel_microbatch_size": _NO_PIPELINE,
    "parallelism.pipeline_parallel_expert_parallel_overlap": _NO_PIPELINE,
    "parallelism.context_parallel_load_balancer": _NO_CONTEXT,
    "parallelism.context_parallel_rotate_method": _NO_CONTEXT,
    "parallelism.expert_tensor_parallel_degree": _NO_EXPERTS,
    "parallelism.expert_parallel_comm_backend": _NO_EXPERTS,
    "quantize.linear.mx": "quantize.linear.float8 is the one converter of this trainer",
    "quantize.grouped_mm": _NO_EXPERTS,
    "comm.mode": "a simulated group trains nothing; start fewer processes (NGPU)",
    "memory_estimation": "it is not supported; the first step logs the memory in use",
    "fault_tolerance": "it is not supported; a run started again goes on from its checkpoint",
    "experimental.custom_args_module": "run_train.sh always reads titan_motif.config",
    "debug.moe_force_load_balance": _NO_EXPERTS,
}
"""Settings and whole sections of torchtitan's that must keep their defaults, each with the reason.
titan_motif.layout refuses what it knows of parallelism."""
ALLOWED = {
    "optimizer.name": ("ParallelMuon", "AdamW", "Adam"),
    "model.converters": ("quantize.linear.float8",),
    "compile.components": ("model", "loss"),
    "checkpoint.exclude_from_loading": (
        "model",
        "optimizer",
        "lr_scheduler",
        "dataloader",
        "train_state",
    ),
    "activation_checkpoint.determinism_check": ("default", "none"),
}
_NEED_ACCELERATOR = {
    "checkpoint.async_mode": "async_with_pinned_mem",
    "training.enable_cpu_offload": True,
    "profiling.enable_profiling": True,
    "profiling.enable_memory_snapshot": True,
}


def check_served(config: JobConfig, runs_here: bool) -> Iterator[Finding]:
    """Yield a finding for every setting whose value would be ignored, or fail inside the ranks.

    Args:
        runs_here: whether this machine has to have what is asked for
    """
    defaults = JobConfig()
    for key in all_keys():
        reason = reason_against(key)
        value, default = value_of(config, key), value_of(defaults, key)
        if reason and value != default:
            yield key, f"is {told(value)}; only {default!r} is allowed: {reason}"
    for key, allowed in ALLOWED.items():
        value = value_of(config, key)
        for entry in value if isinstance(value, list) else [value]:
            if entry not in allowed:
                verb = "names" if isinstance(value, list) else "is"
                choices = " or ".join(map(repr, allowed))
                yield key, f"{verb} {told(entry)}; {choices} is allowed{nearest(entry, allowed)}"
    if runs_here and torch.accelerator.current_accelerator(check_available=True) is None:
        for key, needing in _NEED_ACCELERATOR.items():
            if value_of(config, key) == needing:
                yield key, f"is {needing!r}; that needs a GPU, and this machine shows none"
    if runs_here and config.model.kernels == "triton" and default_implementation() == "torch":
        yield "model.kernels", "is 'triton'; that needs a GPU: 'auto' or 'torch' is allowed here"
    # The registry of backends takes seconds to import.
    backend = config.compile.backend
    if backend != "inductor" and backend not in torch.compiler.list_backends(exclude_tags=()):
        known = torch.compiler.list_backends()
        hint = nearest(backend, known)
        yield "compile.backend", f"is {told(backend)}; one of {', '.join(known)} is needed{hint}"


def reason_against(key: str) -> str | None:
    """Return why a setting has to keep its default; None where it is served."""
    while key and key not in NOT_SERVED:
        key = key.rpartition(".")[0]  # the section that it lies in
    return NOT_SERVED.get(key)
