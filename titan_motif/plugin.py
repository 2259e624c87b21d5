"""Which part serves each of torchtitan's seams: the table of contents of the trainer.

Importing this module registers the train spec `motif2`. Under torchtitan's own entry set
`experimental.custom_import = "titan_motif.plugin"` and
`job.custom_config_module = "titan_motif.config"`.
"""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torchtitan.components.quantization  # noqa: F401  (registers what is replaced below)
from tokenizers import Tokenizer
from torchtitan.components.loss import build_cross_entropy_loss
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.components.tokenizer import HuggingFaceTokenizer
from torchtitan.config import JobConfig
from torchtitan.protocols import model_converter
from torchtitan.protocols.train_spec import TrainSpec, register_train_spec
from torchtitan.tools.logging import logger

from titan_motif.components.curriculum.loader import (
    CurriculumLoader,
    DocumentInputs,
    describe_run,
)
from titan_motif.components.float8 import FLOAT8, Float8Converter
from titan_motif.components.lr_schedule import TokenScheduler, build_schedule
from titan_motif.components.metrics import build_metrics
from titan_motif.components.preparation.foreign_tokenizer import check_tokenizer_folder
from titan_motif.components.validation import SplitValidator, build_validator
from titan_motif.config import LRScheduler
from titan_motif.config_curriculum import check_curriculum
from titan_motif.config_resolving import resolve
from titan_motif.curriculum import build_loader, sources_of, sources_without_manifest
from titan_motif.model import FLAVORS, Motif2Model, Motif2ModelArgs, Motif2StateDictAdapter
from titan_motif.optimizers import build_optimizers
from titan_motif.parallelize import parallelize


class _FreshFlavors(Mapping[str, Motif2ModelArgs]):
    """The flavors as copies: a job writes its overrides into the arguments that it takes."""

    def __getitem__(self, name: str) -> Motif2ModelArgs:
        return replace(FLAVORS[name])

    def __iter__(self) -> Iterator[str]:
        return iter(FLAVORS)

    def __len__(self) -> int:
        return len(FLAVORS)


class WholeTextTokenizer(HuggingFaceTokenizer):
    """torchtitan's tokenizer, which neither fills nor cuts texts; it encodes one as it is built."""

    def _load_tokenizer_from_path(self, tokenizer_path: str) -> Tokenizer:
        tokenizer = super()._load_tokenizer_from_path(tokenizer_path)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer


def build_tokenizer(job_config: JobConfig) -> HuggingFaceTokenizer:
    """Build the tokenizer; as the trainer's first seam it also settles what is 'auto'.

    Raises: ValueError, one line, for files of a tokenizer that are no such, or lead elsewhere
    """
    resolve(job_config, torch.distributed.get_world_size())
    check_tokenizer_folder(job_config.model.hf_assets_path)
    return WholeTextTokenizer(job_config.model.hf_assets_path)


def build_dataloader(
    dp_world_size: int, dp_rank: int, tokenizer: HuggingFaceTokenizer, job_config: JobConfig
) -> CurriculumLoader:
    """Build the loader of one rank, and tell how often each source will be read.

    Raises: ValueError for a curriculum that cannot be planned, or a source without tokens
    """
    for key, message in check_curriculum(job_config):  # nothing has, under torchtitan's own entry
        raise ValueError(f"{key} {message}")
    training = job_config.training
    loader = build_loader(
        job_config,
        dp_rank,
        dp_world_size,
        document_inputs(tokenizer, job_config),
        workers={
            "num_workers": training.dataloader.num_workers,
            "prefetch_factor": training.dataloader.prefetch_factor,
        },
        pins=training.dataloader.pin_memory,
    )
    for line in describe_run(loader, training.steps):
        logger.info(line)
    for name in sources_without_manifest(job_config):
        logger.warning(
            f"data: {name} has no manifest: whether its files are whole, and of this tokenizer, "
            "cannot be told"
        )
    return loader


def build_split_validator(
    job_config: JobConfig, tokenizer: HuggingFaceTokenizer, **arguments: Any
) -> SplitValidator:
    """Build the validator, which sees documents as training does."""
    groups: dict[str, list[Path]] = {}
    for source in sources_of(job_config):
        groups.setdefault(source.group, []).append(source.folder / "validation")
    documents = document_inputs(tokenizer, job_config)
    return build_validator(job_config, groups, documents=documents, **arguments)


def document_inputs(
    tokenizer: HuggingFaceTokenizer, job_config: JobConfig
) -> DocumentInputs | None:
    """Return what the model is told of documents; ValueError if no token ends them."""
    training = job_config.training
    if not training.mask_documents:
        return None
    if tokenizer.eos_id is None:
        raise ValueError(
            f"training.mask_documents is true; the tokenizer in {job_config.model.hf_assets_path} "
            "names no eos_token, with which documents would end"
        )
    return DocumentInputs(tokenizer.eos_id, training.restart_positions)


def build_lr_schedulers(
    optimizers: OptimizersContainer, lr_scheduler_config: LRScheduler, training_steps: int
) -> TokenScheduler:
    """Build the learning rates over tokens; `resolve` has left the plan of the run there."""
    plan = lr_scheduler_config.plan
    assert plan is not None
    schedule = build_schedule(
        training_steps=training_steps, tokens_at=plan.tokens_at, **asdict(lr_scheduler_config)
    )
    logger.info(f"learning rate: {schedule}")
    return TokenScheduler(optimizers, schedule, plan.step(0).tokens)


def get_train_spec() -> TrainSpec:
    """Return the parts of a Motif-2 run."""
    return TrainSpec(
        model_cls=Motif2Model,
        model_args=_FreshFlavors(),
        parallelize_fn=parallelize,
        pipelining_fn=None,
        build_optimizers_fn=build_optimizers,
        build_lr_schedulers_fn=build_lr_schedulers,
        build_dataloader_fn=build_dataloader,
        build_tokenizer_fn=build_tokenizer,
        build_loss_fn=build_cross_entropy_loss,
        build_validator_fn=build_split_validator,
        build_metrics_processor_fn=build_metrics,
        state_dict_adapter=Motif2StateDictAdapter,
    )


register_train_spec("motif2", get_train_spec())
# In place of torchtitan's own, which registers under this name and offers no way to replace it.
model_converter._registry_model_converter_cls[FLOAT8] = Float8Converter
