"""The small job that faults are put into: all that a run's state consists of, in a second or two.

Three sources, one of them so short that it is read several times; documents kept apart; a ramp of
the batch, then one of the length; ParallelMuon beside AdamW; an average of saved steps, fed back.
"""

import contextlib
import io
from pathlib import Path

import numpy as np

from titan_motif.components.whole_files import alone_in
from titan_motif.corpus.prepare import prepare

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
total_tokens = 2400
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
until_share = 0.4
seq_len = 16
global_batch_tokens = 96
global_batch_tokens_end = 192
weights_start = {{ text = 0.6, code = 0.2, mathematics = 0.2 }}
weights_end = {{ text = 0.3, code = 0.3, mathematics = 0.4 }}
[[curriculum.phases]]
name = "second"
until_share = 0.7
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


def small_job(shared: Path) -> Path:
    """Return the job's TOML file; it and its data are made in a folder, if they are not there."""
    shared = shared.absolute()
    shared.mkdir(parents=True, exist_ok=True)
    file = shared / "job.toml"
    with alone_in(shared), contextlib.redirect_stdout(io.StringIO()):
        if not file.exists():
            prepare(shared / "corpus", vocab_size=512, megabytes=0.2)
            _cut(shared / "corpus/mathematics/train", shared / "short/train", SHORT_TOKENS)
            file.write_text(TEXT.format(shared=shared))
    return file


def _cut(split: Path, target: Path, num_tokens: int) -> None:
    """Write the beginning of a split."""
    tokens = np.load(split / "tokens.npy", allow_pickle=False)[:num_tokens]
    offsets = np.load(split / "document_offsets.npy", allow_pickle=False)
    target.mkdir(parents=True, exist_ok=True)
    np.save(target / "tokens.npy", tokens)
    ends = np.append(offsets[offsets < num_tokens], num_tokens)
    np.save(target / "document_offsets.npy", ends)
