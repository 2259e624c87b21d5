"""Fine-tuning on conversations: the job's section, and the packed source that it stands for.

run_train.sh packs the conversations into `training.dataset_path` before any process starts, so
that whatever is wrong with them is said then; from there on a run reads a prepared source like any
other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from titan_motif.components.preparation.inputs import find_inputs
from titan_motif.components.preparation.manifest import MANIFEST, load_manifest
from titan_motif.components.preparation.prepare import MAX_VALIDATION_SHARE
from titan_motif.components.sft.prepare import ChatOptions, prepare_chat
from titan_motif.components.sft.template import load_template

if TYPE_CHECKING:
    from titan_motif.config import JobConfig


@dataclass
class Sft:
    """Supervised fine-tuning on conversations: what is learnt is what the assistant wrote."""

    enable: bool = False
    """
    Train on sft.data, packed whole into sequences of training.seq_len in training.dataset_path.
    Samples do not see each other: training.mask_documents and restart_positions hold.
    """
    data: list[str] = field(default_factory=list)
    """
    Files, folders or patterns of conversations, a row each with `messages`: JSONL (gzip too),
    Parquet, Arrow, Hugging Face datasets on disk.
    """
    epochs: float = 1.0
    """How often all of them are read, where training.steps is -1."""
    chat_template: str = ""
    """
    File of a Jinja template; none means the tokenizer's own, or ours where it has none and knows
    our special tokens.
    """
    reasoning: Literal["keep", "drop"] = "keep"
    """Whether the assistant's `reasoning_content` (or `reasoning`, `thinking`) is learnt too."""
    too_long: Literal["drop", "cut"] = "drop"
    """What becomes of a sample that is longer than training.seq_len."""
    bad_samples: Literal["refuse", "drop"] = "refuse"
    """
    What becomes of a row that holds no conversation: the job does not start, or the row is left
    out, listed with its reason in bad_lines.jsonl.
    """
    special_tokens: Literal["refuse", "allow"] = "refuse"
    """
    Whether a text that holds one of the tokenizer's special tokens makes its sample a bad one: read
    as such, it would end a turn or begin another one.
    """
    validation_share: float = 0.02
    """Share of the samples that is held out, by a hash of each; up to 0.5."""
    messages_field: str = "messages"
    """Field of a row that holds the messages."""


def resolve_sft(config: "JobConfig", world_size: int | None) -> None:
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


def counts_steps_later(config: "JobConfig") -> bool:
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


def _batch(config: "JobConfig", world_size: int | None) -> int:
    """Return the sequences of a step, 0 where that is not known."""
    training = config.training
    if training.global_batch_size > 0:
        return training.global_batch_size
    if world_size is None or training.local_batch_size < 1:
        return 0
    return training.local_batch_size * (
        world_size // max(config.parallelism.tensor_parallel_degree, 1)
    )


def prepare_sft(config: "JobConfig") -> dict[str, Any]:
    """Pack a job's conversations, unless that is done; return the manifest.

    Raises: ValueError, one line
    """
    return prepare_chat(
        config.sft.data,
        config.model.hf_assets_path,
        config.training.dataset_path,
        _options(config),
        config.sft.chat_template,
    )


def _options(config: "JobConfig") -> ChatOptions:
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


def check_sft(config: "JobConfig") -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a fine-tuning job's settings, its files aside."""
    sft, unset = config.sft, Sft()
    if not sft.enable:
        for name, value in vars(sft).items():
            if value != getattr(unset, name):
                yield f"sft.{name}", f"is {value!r}; it needs sft.enable to be true"
        return
    if not sft.data:
        yield "sft.data", "is empty; files of conversations are needed"
    if not 0 < sft.epochs < float("inf"):
        yield "sft.epochs", f"is {sft.epochs}; more than 0 is needed"
    if not 0 <= sft.validation_share <= MAX_VALIDATION_SHARE:
        told = f"is {sft.validation_share}; 0 to {MAX_VALIDATION_SHARE} is allowed"
        yield "sft.validation_share", told
    if config.validation.enable and sft.validation_share == 0:
        yield "sft.validation_share", "is 0; validation.enable is true, and needs some samples"
    if config.validation.enable and config.validation.seq_len != config.training.seq_len:
        yield (
            "validation.seq_len",
            f"is {config.validation.seq_len}; samples are packed into sequences of "
            f"training.seq_len, {config.training.seq_len}",
        )
    if config.curriculum.enable and (config.curriculum.sources or config.curriculum.phases):
        yield "sft.enable", "is true; the curriculum has sources or phases: sft.data is read alone"


def check_packed(config: "JobConfig") -> Iterator[tuple[str, str]]:
    """Yield what is wrong with what a fine-tuning job is to read."""
    folder = Path(config.training.dataset_path)
    if not (folder / MANIFEST).is_file():
        yield (
            "training.dataset_path",
            f"is {str(folder)!r}; the conversations of sft.data are not packed there yet: "
            "run_train.sh does so before it starts a job, PREPARE_ONLY=1 that alone",
        )
        return
    manifest = load_manifest(folder)
    found = manifest.get("chat", {})
    for name, value in vars(_options(config)).items():
        if found.get(name) != value:
            told = f"with {name} {found.get(name)!r}, and the job has {value!r}"
            yield _packed_otherwise(folder, told)
            return
    try:
        template = load_template(config.model.hf_assets_path, config.sft.chat_template)
    except ValueError as error:
        yield "sft.chat_template", f"is what is packed with; {error}"
        return
    if manifest["chat_template"]["sha256"] != template.sha256:
        told = f"with another chat template than that of {template.origin}, which the job has"
        yield _packed_otherwise(folder, told)
    try:
        inputs = [(one.path, one.num_bytes) for one in find_inputs(config.sft.data)]
    except ValueError as error:
        yield "sft.data", f"is what is packed; {error}"
        return
    # Hashing them at every start, on every rank, would take long: run_train.sh does so once.
    packed = [(one["path"], one["bytes"]) for one in manifest["inputs"]]
    if packed != inputs:
        yield _packed_otherwise(folder, f"of {_told(packed)}, and the job has {_told(inputs)}")


def _told(inputs: list[tuple[str, int]]) -> str:
    """Return a listing of files in a few words."""
    path, _ = inputs[0]
    more = f" and {len(inputs) - 1} more" if len(inputs) > 1 else ""
    return f"{path}{more} ({sum(size for _, size in inputs):,} bytes)"


def _packed_otherwise(folder: Path, how: str) -> tuple[str, str]:
    told = f"is {str(folder)!r}; it is packed {how}: name another folder, or remove that one"
    return "training.dataset_path", told
