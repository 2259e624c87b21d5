"""config.json of a Hugging Face directory, and the arguments of our network.

The names are those of the released checkpoints; `lam_init`, `head_dim` and `k_ratio` are there for
readers that know them, and follow from the rest where they are missing.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from titan_motif.components.foreign_files import inside, read_json
from titan_motif.model.args import Motif2ModelArgs

CONFIG = "config.json"
MODEL_TYPE = "Motif"

# Ours -> theirs.
_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "grouped_ratio": "grouped_ratio",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "attn_norm_eps": "attn_rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "lam_init": "lam_init",
}
_MAX_SIZE, _MAX_LAYERS = 1 << 24, 1 << 9
"""Of a width or a vocabulary, and of layers: several times the largest models'."""
_NEEDED = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size")


def hf_config(args: Motif2ModelArgs, dtype: torch.dtype, **more: Any) -> str:
    """Return the text of the config.json of a network whose tensors have this dtype."""
    values = {theirs: getattr(args, ours) for ours, theirs in _NAMES.items()}
    config = {
        "architectures": ["MotifForCausalLM"],
        "model_type": MODEL_TYPE,
        "hidden_act": "poly_norm",
        **values,
        "k_ratio": 1,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **more,
    }
    return json.dumps(config, indent=2) + "\n"


def _problem(name: str, value: Any) -> str | None:
    """Return what is needed where a setting has another value."""
    if name == "tie_embeddings":
        return None if type(value) is bool else "true or false"
    if name in ("rope_theta", "norm_eps", "attn_norm_eps"):
        return None if _is_number(value) and 0 < value < 1e15 else "a number above 0"
    if name == "lam_init":
        is_list = isinstance(value, list) and all(map(_is_number, value))
        return None if is_list else "a number for each layer"
    least, most = 1, _MAX_LAYERS if name == "n_layers" else _MAX_SIZE
    if name == "grouped_ratio":
        least = 0
    if type(value) is int and least <= value <= most:
        return None
    return f"an integer from {least} to {most:,}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def read_hf_config(folder: str | Path) -> Motif2ModelArgs:
    """Return the network that a directory's config.json describes.

    Raises: ValueError, one line, if it is missing, broken, of another family, or no network
    """
    path = Path(folder) / CONFIG
    try:
        found = read_json(inside(Path(folder), CONFIG))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from None
    kind = found.get("model_type") if isinstance(found, dict) else None
    if not isinstance(kind, str) or kind.lower() != MODEL_TYPE.lower():
        raise ValueError(f"{path}: model_type is {kind!r}; {MODEL_TYPE!r} is needed")
    missing = [_NAMES[name] for name in _NEEDED if found.get(_NAMES[name]) is None]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    for name, served in (("rope_scaling", (None,)), ("k_ratio", (1,))):
        if found.get(name, served[0]) not in served:
            raise ValueError(f"{path}: {name} is {found[name]!r}; {served[0]!r} alone is served")
    values = {ours: found.get(theirs) for ours, theirs in _NAMES.items()}
    values = {ours: value for ours, value in values.items() if value is not None}
    for name, value in values.items():
        if problem := _problem(name, value):
            raise ValueError(f"{path}: {_NAMES[name]} is {str(value)[:80]!r}; {problem} is needed")
    values.setdefault("grouped_ratio", 1)
    values.setdefault("head_dim", values["dim"] // values["n_heads"])
    values.setdefault("tie_embeddings", False)
    if "lam_init" in values:
        values["lam_init"] = tuple(values["lam_init"])
    try:
        return dataclasses.replace(Motif2ModelArgs(), **values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
