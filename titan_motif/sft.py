"""Fine-tuning on conversations: the packed source that a job's section stands for.

run_train.sh packs the conversations into `training.dataset_path` before any process starts, so
that whatever is wrong with them is said then; from there on a run reads a prepared source like any
other.
"""

import math
from pathlib import Path
from typing import Any

from titan_motif.components.preparation.manifest import MANIFEST, load_manifest
from titan_motif.components.sft.prepare import ChatOptions, prepare_chat
from titan_motif.config import JobConfig
from titan_motif.layout import data_parallel_ranks


def resolve_sft(config: JobConfig, world_size: int | None) -> None:
    """Let a fine-tuning job read what is packed for it, in place, and count its steps by that."""
    if not config.sft.enable:
        return
    training = config.training
    training.dataset = "prepared"
    training.mask_documents = training.restart_positions = True
    if training.steps != -1:
        return
    sequences, batch = _num_sequences(Path(training.dataset_path)), _batch(config, world_size)
    if sequences and batch:
        training.steps = max(math.ceil(config.sft.epochs * sequences / batch), 1)


def counts_steps_later(config: JobConfig) -> bool:
    """Return whether the number of steps follows from what is not packed yet."""
    return config.sft.enable and config.training.steps == -1


def _num_sequences(folder: Path) -> int:
    """Return the sequences of a packed source, 0 where there is none."""
    if not (folder / MANIFEST).is_file():
        return 0
    try:
        return load_manifest(folder)["splits"]["train"].get("sequences", 0)
    except ValueError:  # said where its files are checked
        return 0


def _batch(config: JobConfig, world_size: int | None) -> int:
    """Return the sequences of a step, 0 where that is not known."""
    training = config.training
    if training.global_batch_size > 0:
        return training.global_batch_size
    if world_size is None or training.local_batch_size < 1:
        return 0
    return training.local_batch_size * data_parallel_ranks(config, world_size)


def prepare_sft(config: JobConfig) -> dict[str, Any]:
    """Pack a job's conversations, unless that is done; return the manifest.

    Raises: ValueError, one line
    """
    return prepare_chat(
        config.sft.data,
        config.model.hf_assets_path,
        config.training.dataset_path,
        chat_options(config),
        config.sft.chat_template,
    )


def chat_options(config: JobConfig) -> ChatOptions:
    """Return how a job's conversations are packed."""
    sft = config.sft
    return ChatOptions(
        seq_len=config.training.seq_len,
        reasoning=sft.reasoning,
        too_long=sft.too_long,
        bad_samples=sft.bad_samples,
        special_tokens=sft.special_tokens,
        validation_share=sft.validation_share,
        field=sft.messages_field,
    )
