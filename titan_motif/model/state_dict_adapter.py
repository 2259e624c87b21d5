"""The names of the released checkpoints, and ours."""

import re
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torchtitan.protocols.state_dict_adapter import StateDictAdapter

from titan_motif.components.safetensors_files import SafetensorsFolder
from titan_motif.model.args import Motif2ModelArgs
from titan_motif.model.hf_config import CONFIG, hf_config, read_hf_config
from titan_motif.model.model import parameter_shapes

# Ours -> released; {i} is the layer.
GLOBAL_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "layers.{i}.attention_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "layers.{i}.ffn_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "layers.{i}.attention.q_proj.weight": "model.layers.{i}.self_attn.q_proj.weight",
    "layers.{i}.attention.k_proj.weight": "model.layers.{i}.self_attn.k_proj.weight",
    "layers.{i}.attention.v_proj.weight": "model.layers.{i}.self_attn.v_proj.weight",
    "layers.{i}.attention.o_proj.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "layers.{i}.attention.head_norm.weight": "model.layers.{i}.self_attn.subln.weight",
    "layers.{i}.feed_forward.gate_proj.weight": "model.layers.{i}.mlp.gate_proj.weight",
    "layers.{i}.feed_forward.up_proj.weight": "model.layers.{i}.mlp.up_proj.weight",
    "layers.{i}.feed_forward.down_proj.weight": "model.layers.{i}.mlp.down_proj.weight",
    "scalars.layers.{i}.lambda_q1": "model.layers.{i}.self_attn.lambda_q1",
    "scalars.layers.{i}.lambda_k1": "model.layers.{i}.self_attn.lambda_k1",
    "scalars.layers.{i}.lambda_q2": "model.layers.{i}.self_attn.lambda_q2",
    "scalars.layers.{i}.lambda_k2": "model.layers.{i}.self_attn.lambda_k2",
    "scalars.layers.{i}.poly_weight": "model.layers.{i}.mlp.act_fn.weight",
    "scalars.layers.{i}.poly_bias": "model.layers.{i}.mlp.act_fn.bias",
}

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


class Motif2StateDictAdapter(StateDictAdapter):
    """torchtitan's adapter between our parameter names and the released checkpoints'."""

    def __init__(self, model_args: Motif2ModelArgs, hf_assets_path: str | None) -> None:
        super().__init__(model_args, hf_assets_path)
        self.model_args = model_args

    def get_hf_storage_reader(
        self, path: str, from_quantized: bool = False
    ) -> HuggingFaceStorageReader:
        """Return the reader of a directory of safetensors.

        Raises: ValueError, one line, if its files are broken, or if they are another network's: by
                the first tensor that is missing, left over or of another shape, and by what its
                config.json says of constants that no tensor holds
        """
        problem = self._problem(Path(path))
        if problem:
            raise ValueError(problem)
        return HuggingFaceStorageReader(path)

    def _problem(self, folder: Path) -> str | None:
        args = self.model_args
        shapes = {
            released_name(name): tuple(shape) for name, shape in parameter_shapes(args).items()
        }
        files = SafetensorsFolder(folder)
        found = files.tensors
        # torch's reader takes every file that lies there.
        stray = sorted({path.name for path in folder.glob("*.safetensors")} - files.file_names)
        if stray:
            return f"has {stray[0]} beside the files that its index names"
        for name, shape in shapes.items():
            if name not in found:
                return f"lacks the tensor {name}"
            if found[name].shape != shape:
                return f"{name} has the shape {found[name].shape}; the job's network has {shape}"
        extra = sorted(found.keys() - shapes.keys())
        if extra:
            return f"the tensor {extra[0]} is none of the job's network"
        return self.constants_problem(folder)

    def constants_problem(self, folder: Path) -> str | None:
        """Return what a directory's config.json says that the job's network has otherwise.

        Of what no tensor holds, and the function depends on; None if there is no config.json.
        """
        args = self.model_args
        if not (folder / CONFIG).is_file():
            return None
        theirs = read_hf_config(folder)
        for name in ("layer_lam_init", "rope_theta", "norm_eps", "attn_norm_eps"):
            then, now = getattr(theirs, name), getattr(args, name)
            if then != now:
                key = name.removeprefix("layer_")
                needed = list(then) if isinstance(then, tuple) else then
                return (
                    f"its config.json has another {key} than the job, whose function would be "
                    f"another: [model.args] {key} = {needed} is needed"
                )
        return None

    def files_beside(self) -> dict[str, str]:
        """Return the files that go into every saved step: what network its tensors are."""
        return {CONFIG: hf_config(self.model_args, torch.float32)}  # of the parameters

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Rename our state dict as released; ValueError for a name that has no counterpart."""
        return {released_name(name): value for name, value in state_dict.items()}

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """Rename a released state dict as ours; ValueError for a name that has no counterpart."""
        return {our_name(name): value for name, value in hf_state_dict.items()}


def released_name(name: str) -> str:
    """Return the released name of a parameter of ours; ValueError if it has none."""
    return _renamed(name, GLOBAL_NAMES | LAYER_NAMES)


def our_name(name: str) -> str:
    """Return our name of a released parameter; ValueError if it has none."""
    return _renamed(name, {theirs: ours for ours, theirs in (GLOBAL_NAMES | LAYER_NAMES).items()})


def _renamed(name: str, names: dict[str, str]) -> str:
    layer = _LAYER.search(name)
    pattern = _LAYER.sub("{i}", name, count=1)
    if pattern not in names:
        raise ValueError(f"{name} is not a parameter of Motif-2")
    return names[pattern].replace("{i}", layer.group() if layer else "")
