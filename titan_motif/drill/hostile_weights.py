"""Hostile files of weights: config.json, safetensors, and the index of several."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from titan_motif.components.safetensors_files import (
    INDEX,
    MAX_HEADER_BYTES,
    SINGLE,
    SafetensorsFolder,
    TensorShape,
    write_shard,
)
from titan_motif.drill.hostile_case import CANARY, PLANTED, Case, Place
from titan_motif.interchange.model_files import open_model
from titan_motif.model import Motif2ModelArgs
from titan_motif.model.hf_config import CONFIG, hf_config, read_hf_config
from titan_motif.model.model import parameter_shapes
from titan_motif.model.state_dict_adapter import released_name

_DEEP = 200_000
_ARGS = Motif2ModelArgs(
    dim=8, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=4, hidden_dim=8, grouped_ratio=1
)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a directory of safetensors."""
    files = SafetensorsFolder(folder)
    return {name: files.read(name) for name in files.tensors}


def _read_model(folder: Path) -> dict[str, torch.Tensor]:
    model = open_model(folder)
    return {name: model.read_finite(name) for name in model.tensors}


# ---- config.json


def _config(place: Place, **changes: Any) -> None:
    settings = json.loads(hf_config(_ARGS, torch.float32)) | changes
    place.write(CONFIG, json.dumps(settings))


def _config_text(place: Place, text: str) -> None:
    place.write(CONFIG, text)


def _model_with_code(place: Place) -> None:
    """Write a whole model whose config.json names a module of its own to be imported."""
    shapes = {
        released_name(name): TensorShape(shape, torch.float32)
        for name, shape in parameter_shapes(_ARGS).items()
    }
    write_shard(place.inside / SINGLE, shapes, lambda name: torch.zeros(shapes[name].shape))
    classes = {"AutoConfig": f"{PLANTED}.Config", "AutoModelForCausalLM": f"{PLANTED}.Model"}
    _config(place, auto_map=classes, custom_pipelines={"x": {"impl": f"{PLANTED}.Pipe"}})
    place.plant()


_CONFIGS: dict[str, Callable[[Place], Any]] = {
    "nested 200,000 deep": lambda p: _config_text(p, '{"a":' * _DEEP + "1" + "}" * _DEEP),
    "of a terabyte": lambda p: p.sparse(CONFIG, 1 << 40),
    "with a name twice": lambda p: _config_text(p, '{"model_type": "Motif", "model_type": "x"}'),
    "with NaN": lambda p: _config(p, rms_norm_eps=float("nan")),
    "of 2^60 columns": lambda p: _config(p, hidden_size=2**60),
    "of 10^9 layers": lambda p: _config(p, num_hidden_layers=10**9, lam_init=None),
    "without heads": lambda p: _config(p, num_attention_heads=0),
    "of texts for numbers": lambda p: _config(p, intermediate_size="8; import os"),
    "that is a link out": lambda p: p.link_out(CONFIG, json.dumps({"model_type": CANARY})),
    "that is a pipe": lambda p: os.mkfifo(p.inside / CONFIG),
}


# ---- safetensors


def _file(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _tensor(begin: Any = 0, end: Any = 16, shape: Any = (4,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _weights(place: Place, content: bytes) -> None:
    place.write(SINGLE, content)


_SECRET = _file({"secret": _tensor(0, len(CANARY), (len(CANARY) // 4,))}, CANARY.encode())

_FILES: dict[str, bytes | Callable[[], bytes]] = {
    "a header of 2^63 bytes": _file({}, length=2**63),
    "a header over the limit": lambda: _file(b" " * (MAX_HEADER_BYTES + 1)),
    "a header nested 200,000 deep": _file(b"[" * _DEEP),
    "a tensor twice": _file(b'{"a":%b,"a":%b}' % ((json.dumps(_tensor()).encode(),) * 2)),
    "a negative offset": _file({"a": _tensor(-16, 0)}),
    "an offset behind the end": _file({"a": _tensor(0, 1 << 40, (1 << 38,))}),
    "offsets that overlap": _file({"a": _tensor(0, 12, (3,)), "b": _tensor(8, 16, (2,))}),
    "a hole between tensors": _file({"a": _tensor(0, 4, (1,)), "b": _tensor(12, 16, (1,))}),
    "a dtype that is none": _file({"a": _tensor(dtype="os.system")}),
    "2^40 elements in 16 bytes": _file({"a": _tensor(shape=(1 << 40,))}),
    "a shape that overflows": _file({"a": _tensor(shape=(1 << 62, 1 << 62))}),
}


def _index(place: Place, weight_map: Any, **files: bytes) -> None:
    place.write(INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name, content in files.items():
        place.write(f"{name}.safetensors", content)


def _pickle_for_weights(place: Place, name: str) -> None:
    place.write(name, place.pickled())


def _index_out(place: Place, name: str) -> None:
    place.secret("secret.safetensors", _SECRET)
    absolute = str(place.outside / "secret.safetensors")
    _index(place, {"secret": absolute if name == "absolute" else name})


def _linked_shard(place: Place) -> None:
    place.link_out("a.safetensors", _SECRET)
    _index(place, {"secret": "a.safetensors"})


def _cached_snapshot(place: Place) -> None:
    """Lay files as the hub's cache does: links into a folder of blobs, which is another's."""
    place.link_out(SINGLE, _SECRET)
    _config(place)


def _piped_shard(place: Place) -> None:
    os.mkfifo(place.inside / "a.safetensors")
    _index(place, {"a": "a.safetensors"})


_FOLDERS: dict[str, Callable[[Place], Any]] = {
    "weights that are a link out": lambda p: p.link_out(SINGLE, _SECRET),
    "weights of the hub's cache, links out": _cached_snapshot,
    "weights that are a pickle": partial(_pickle_for_weights, name=SINGLE),
    "a pickle alone": partial(_pickle_for_weights, name="pytorch_model.bin"),
    "an index that goes up": partial(_index_out, name="../outside/secret.safetensors"),
    "an index with a whole path": partial(_index_out, name="absolute"),
    "an index that names a link out": _linked_shard,
    "an index that names a pipe": _piped_shard,
    "an index that is a link out": lambda p: p.link_out(INDEX, json.dumps({"weight_map": CANARY})),
    "an index of a terabyte": lambda p: p.sparse(INDEX, 1 << 40),
}

_QUICK = (
    *("that is a link out", "a header of 2^63 bytes", "an index that goes up"),
    *("2^40 elements in 16 bytes", "weights that are a pickle"),
)


def _write_weights(place: Place, content: bytes | Callable[[], bytes]) -> None:
    _weights(place, content if isinstance(content, bytes) else content())


CASES = (
    *(
        Case(f"config.json {name}", build, read_hf_config, is_quick=name in _QUICK)
        for name, build in _CONFIGS.items()
    ),
    Case("a model that names its own code", _model_with_code, _read_model, is_refused=False),
    *(
        Case(
            f"safetensors: {name}",
            partial(_write_weights, content=content),
            read_weights,
            is_quick=name in _QUICK,
        )
        for name, content in _FILES.items()
    ),
    *(Case(name, build, read_weights, is_quick=name in _QUICK) for name, build in _FOLDERS.items()),
)
