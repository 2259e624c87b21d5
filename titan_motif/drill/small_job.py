"""The small job that faults are put into: all that a run's state consists of, in a second or two.

Three sources, one of them so short that it is read several times; documents kept apart; a ramp of
the batch, then one of the length; ParallelMuon beside AdamW; an average of saved steps, fed back.
"""

import contextlib
import functools
import io
import itertools
import json
from hashlib import sha256
from pathlib import Path

import titan_motif.device

# isort: split
import numpy as np
import tomli
import tomli_w

import titan_motif
from titan_motif import components, kernels
from titan_motif.components.whole_files import alone_in
from titan_motif.config_loading import load_config
from titan_motif.corpus.conversations import stage_1, stage_2
from titan_motif.corpus.prepare import prepare
from titan_motif.sft import prepare_sft

SHORT_TOKENS = 1200
"""Of the source that is read several times."""

TEXT = """
[job]
description = "a small run of the drill"
[model]
name = "motif2"
flavor = "debug"
hf_assets_path = "{shared}/corpus/tokenizer"
[model.args]
dim = 20
n_layers = 2
n_heads = 5
n_kv_heads = 2
head_dim = 4
hidden_dim = 24
vocab_size = 512
[training]
dataset = "prepared"
dataset_path = "{shared}"
steps = -1
max_norm = 1.0
mask_documents = true
restart_positions = true
[curriculum]
total_tokens = 2550
local_batch_tokens = 96
[[curriculum.sources]]
name = "english"
group = "text"
path = "corpus/english"
[[curriculum.sources]]
name = "code"
group = "code"
path = "corpus/code"
[[curriculum.sources]]
name = "short"
group = "mathematics"
path = "short"
[[curriculum.phases]]
name = "first"
until_share = 0.3
seq_len = 16
global_batch_tokens = 96
global_batch_tokens_end = 192
weights_start = {{ text = 0.6, code = 0.2, mathematics = 0.2 }}
weights_end = {{ text = 0.3, code = 0.3, mathematics = 0.4 }}
[[curriculum.phases]]
name = "second"
until_share = 0.5
seq_len = 16
global_batch_tokens = 192
weights_start = {{ text = 0.3, code = 0.3, mathematics = 0.4 }}
[[curriculum.phases]]
name = "third"
until_share = 1.0
seq_len = 32
global_batch_tokens = 192
weights_start = {{ text = 0.2, code = 0.4, mathematics = 0.4 }}
[optimizer]
name = "ParallelMuon"
lr = 8e-3
beta1 = 0.9
beta2 = 0.95
weight_decay = 0.1
qk_clip = true
qk_clip_threshold = 0.5
[lr_scheduler]
warmup_ratio = 0.2
decay_ratio = 0.5
decay_type = "cosine"
min_lr_factor = 0.05
[moving_average]
enable = true
interval_tokens = 900
num_checkpoints = 2
[metrics]
log_freq = 1
enable_tensorboard = false
[checkpoint]
enable = true
interval = 3
keep_latest_k = 3
async_mode = "disabled"
[validation]
enable = false
[summary]
enable = false
[watchdog]
stall_seconds = 20
slow_seconds = 40
[comm]
init_timeout_seconds = 60
train_timeout_seconds = 45
[debug]
seed = 0
"""

SFT_TEXT = """
[job]
description = "a small stage of fine-tuning of the drill"
[training]
dataset_path = "{shared}/packed/stage-{stage}"
seq_len = 64
local_batch_size = 2
global_batch_size = 4
steps = 60
max_norm = 1.0
[sft]
enable = true
data = ["{shared}/stage-{stage}.jsonl"]
[lr_scheduler]
warmup_ratio = 0.05
decay_type = "cosine"
min_lr_factor = 0.0
[checkpoint]
enable = true
initial_load_model_only = true
"""
_TAKEN_OVER = (
    "model",
    "optimizer",
    "metrics",
    "validation",
    "summary",
    "watchdog",
    "comm",
    "debug",
)
"""Sections that fine-tuning has from the small job."""
SFT_ROWS = 160
"""Conversations of a stage."""


def small_sft_job(shared: Path, stage: int) -> Path:
    """Return the TOML file of a stage (1 or 2) of fine-tuning the small job's model; likewise."""
    pretrained = tomli.loads(small_job(shared).read_text())
    shared = shared.absolute()
    file = shared / f"stage-{stage}.toml"
    with alone_in(shared), contextlib.redirect_stdout(io.StringIO()):
        if not file.exists():
            rows = itertools.islice((stage_1, stage_2)[stage - 1](), SFT_ROWS)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (shared / f"stage-{stage}.jsonl").write_text(text)
            job = tomli.loads(SFT_TEXT.format(shared=shared, stage=stage))
            job |= {name: pretrained[name] for name in _TAKEN_OVER}
            draft = file.with_suffix(".new")
            draft.write_text(tomli_w.dumps(job))
            prepare_sft(load_config([f"--job.config_file={draft}"], runs_here=False))
            draft.rename(file)
    return file


def shared_folder(folder: Path) -> Path:
    """Return the folder, beside a case's, of what cases share: the job, its data, undisturbed runs.

    Its name follows from the source: an undisturbed run of another version proves nothing.
    """
    return folder.absolute().parent / f"shared-{_source_hash()}"


@functools.cache
def _source_hash() -> str:
    found = sha256()
    for package in (titan_motif, components, kernels):
        for root in package.__path__:
            for file in sorted(Path(root).rglob("*.py")):
                found.update(file.read_bytes())
    return found.hexdigest()[:12]


def small_job(shared: Path) -> Path:
    """Return the job's TOML file; it and its data are made in a folder, if they are not there."""
    shared = shared.absolute()
    shared.mkdir(parents=True, exist_ok=True)
    file = shared / "job.toml"
    with alone_in(shared), contextlib.redirect_stdout(io.StringIO()):
        if not file.exists():
            prepare(shared / "corpus", vocab_size=512, megabytes=0.2)
            for split in ("train", "validation"):
                _cut(
                    shared / f"corpus/mathematics/{split}", shared / f"short/{split}", SHORT_TOKENS
                )
            file.write_text(TEXT.format(shared=shared))
    return file


def _cut(split: Path, target: Path, num_tokens: int) -> None:
    """Write the beginning of a split."""
    tokens = np.load(split / "tokens.npy", allow_pickle=False)[:num_tokens]
    offsets = np.load(split / "document_offsets.npy", allow_pickle=False)
    target.mkdir(parents=True, exist_ok=True)
    np.save(target / "tokens.npy", tokens)
    ends = np.append(offsets[offsets < len(tokens)], len(tokens))  # a split may be as short
    np.save(target / "document_offsets.npy", ends)
