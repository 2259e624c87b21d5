"""The sections of a job that say what it reads: `[curriculum]`, or `[sft]`."""

from dataclasses import dataclass, field
from typing import Literal

import tyro


@dataclass
class SourceSettings:
    """A `[[curriculum.sources]]` table: prepared tokens that belong to a group."""

    name: str = ""
    """Its name in checkpoints, logs and traces."""
    group: str = ""
    """The group whose share it is part of."""
    path: str = ""
    """Its folder, with train/tokens.npy; relative to training.dataset_path."""
    format: Literal["prepared"] = "prepared"
    """'prepared': what `titan-motif data prepare` writes."""
    weight: float = -1.0
    """Its part of the group's share, beside the group's other sources; -1 is its tokens, so that
    all of them are read equally often."""


@dataclass
class PhaseSettings:
    """A `[[curriculum.phases]]` table: a stretch of the run."""

    name: str = ""
    """What it is called in tables and pictures."""
    until_tokens: int = -1
    """Tokens of the run at which it ends."""
    until_share: float = -1.0
    """The same as a share of curriculum.total_tokens."""
    seq_len: int = -1
    """Tokens of a sequence."""
    global_batch_tokens: int = -1
    """Tokens that all ranks take together in a step."""
    global_batch_tokens_end: int = -1
    """The same at the phase's end, reached linearly; -1 is global_batch_tokens."""
    weights_start: dict[str, float] = field(default_factory=dict)
    """Share of each group at its beginning; they sum to 1."""
    weights_end: dict[str, float] = field(default_factory=dict)
    """The same at its end, reached linearly in tokens; empty is weights_start."""


@dataclass
class Curriculum:
    """What is read when: sources in groups, and phases of mixture, length and batch size."""

    enable: bool = True
    """Read sources and phases; false leaves both out, as for a trial of a large job on one GPU."""
    sources: tyro.conf.Fixed[list[SourceSettings]] = field(default_factory=list)
    """The data; none means all that lies in training.dataset_path, equally often."""
    phases: tyro.conf.Fixed[list[PhaseSettings]] = field(default_factory=list)
    """The run, its lengths and batches; none means training.steps equal steps."""
    total_tokens: int = -1
    """Tokens of the run, of which phases take their until_share."""
    local_batch_tokens: int = -1
    """Tokens of a rank's micro-batch, whatever the length of its sequences (one of them at least);
    -1 is one micro-batch a step."""
    batch_multiple: int = 1
    """Sequences that batches are multiples of: the number of ranks, and no rank waits for another
    in a ramp."""
    caps: tyro.conf.Fixed[dict[str, float]] = field(default_factory=dict)
    """Largest share that a group may have, in every 1024 sequences."""

    def __post_init__(self) -> None:
        # torchtitan's own entry hands over what TOML has: tables.
        self.sources = [SourceSettings(**s) if isinstance(s, dict) else s for s in self.sources]
        self.phases = [PhaseSettings(**p) if isinstance(p, dict) else p for p in self.phases]

    @property
    def has_phases(self) -> bool:
        """Whether phases decide length and batch."""
        return self.enable and bool(self.phases)


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
