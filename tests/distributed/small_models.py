"""Models of random weights and their directories; a source of a few texts."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.components.safetensors_files import (
    TensorShape,
    cut_into_shards,
    write_index,
    write_shard,
)
from titan_motif.model import Motif2Model, Motif2ModelArgs
from titan_motif.model.hf_config import hf_config
from titan_motif.model.state_dict_adapter import released_name

GROUPED = Motif2ModelArgs(
    dim=20,
    n_layers=2,
    n_heads=10,
    n_kv_heads=4,
    head_dim=8,
    hidden_dim=24,
    vocab_size=300,
    max_seq_len=64,
    kernels="torch",
)
"""Groups of four signal heads to a noise head, for a tokenizer of up to 300 entries."""


def random_model(args: Motif2ModelArgs, seed: int = 0) -> Motif2Model:
    """A float64 model none of whose tensors is what an initialisation would leave it."""
    torch.manual_seed(seed)
    model = Motif2Model(args)
    model.init_weights()
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def write_model(folder: Path, model: Motif2Model, max_bytes: int = 1 << 30) -> Path:
    """Write a model as the rest of the world has it: safetensors and config.json."""
    folder.mkdir(parents=True)
    state: dict[str, Tensor] = {released_name(n): v for n, v in model.state_dict().items()}
    shapes = {name: TensorShape(tuple(v.shape), v.dtype) for name, v in state.items()}
    shards = cut_into_shards(shapes, max_bytes)
    for name, shard in shards.items():
        write_shard(folder / name, shard, state.__getitem__)
    write_index(folder, shards)
    dtype = next(model.parameters()).dtype
    (folder / "config.json").write_text(hf_config(model.model_args, dtype))
    return folder


def write_with_tokenizer(folder: Path, model: Motif2Model, tokenizer: Path) -> Path:
    """Write a model in float32, as one that is published: its tokenizer beside it."""
    write_model(folder, model.float())
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def overrides(args: Motif2ModelArgs) -> str:
    """Return the [model.args] of a job that has this network, over the debug flavor."""
    base = dataclasses.asdict(Motif2ModelArgs())
    changed = {
        name: value
        for name, value in dataclasses.asdict(args).items()
        if value != base[name] and name not in ("kernels", "attention", "init_seed")
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in changed.items()]
    return "[model.args]\n" + "\n".join(lines) + "\n"


def run_of(tmp_path: Path, args: Motif2ModelArgs, tokenizer: object) -> Path:
    """Make a run's folder without its step, and return the folder of the step."""
    step = tmp_path / "run" / "checkpoint" / "step-5"
    step.parent.mkdir(parents=True)
    lines = [
        "training.seq_len = 32",
        "training.builtin_vocab_size = 300",
        "validation.seq_len = 32",
        f'model.hf_assets_path = "{tokenizer}"',
        overrides(args),
    ]
    job = "\n".join(lines)
    (tmp_path / "run" / "config.resolved.toml").write_text(job)
    return step


def write_source(folder: Path, tokenizer_folder: Path, texts: list[str]) -> Path:
    """Write a source's held-out split, as `titan-motif data prepare` does; return its folder."""
    loaded = load_tokenizer(tokenizer_folder)
    pieces = [[*loaded.tokenizer.encode(text).ids, loaded.end_id] for text in texts]
    split = folder / "validation"
    split.mkdir(parents=True)
    np.save(split / "tokens.npy", np.concatenate(pieces).astype(np.uint16))
    np.save(split / "document_offsets.npy", np.cumsum([0, *map(len, pieces)], dtype=np.int64))
    return split
