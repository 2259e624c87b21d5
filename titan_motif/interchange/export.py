"""`titan-motif export`: a step as the directory that Hugging Face's transformers loads."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import torch
from torch import Tensor

from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.components.progress import byte_progress
from titan_motif.components.safetensors_files import (
    TensorShape,
    cut_into_shards,
    write_index,
    write_shard,
)
from titan_motif.components.seal import seal_folder
from titan_motif.interchange import output_folder
from titan_motif.interchange.model_files import ModelFiles, open_model
from titan_motif.model.hf_config import CONFIG, hf_config
from titan_motif.model.state_dict_adapter import our_name, released_name

CODE = "modeling_motif.py"
AUTO_MAP = {
    "AutoConfig": "modeling_motif.MotifConfig",
    "AutoModel": "modeling_motif.MotifModel",
    "AutoModelForCausalLM": "modeling_motif.MotifForCausalLM",
}


@dataclass
class Options:
    """Write a model as transformers loads it, with its code, tokenizer and chat template.

    Example: titan-motif export --from run/checkpoint/step-1000 --to hf --tokenizer data/tokenizer
    """

    from_: output_folder.From
    """A DCP step, or a directory of safetensors."""
    to: Path
    """The folder to write; nothing is ever replaced."""
    tokenizer: Path | None = None
    """Folder of the tokenizer; without one, what lies beside the model is taken along."""
    config: Path | None = None
    """The model's job, where its folder does not tell its network."""
    dtype: Literal["same", "bfloat16", "float32", "float64"] = "same"
    """Of the tensors written, lambda's vectors and PolyNorm's coefficients aside."""
    shard_gigabytes: float = 5.0
    """Largest file, but for a tensor that is larger."""
    json: Path | None = None
    """Write the figures to this file."""


def main(options: Options) -> None:
    """Write a step as a folder that transformers reads."""
    if not 0 < options.shard_gigabytes < float("inf"):
        raise ValueError(f"--shard-gigabytes is {options.shard_gigabytes}; more than 0 is needed")
    source = open_model(options.from_, options.config)
    tokenizer = options.tokenizer or source.folder
    if options.tokenizer is not None and not (tokenizer / "tokenizer.json").is_file():
        raise ValueError(f"{tokenizer / 'tokenizer.json'}: no such file")
    dtype = None if options.dtype == "same" else getattr(torch, options.dtype)
    shapes = {
        released_name(name): shape._replace(dtype=stored_dtype(name, shape.dtype, dtype))
        for name, shape in source.tensors.items()
    }
    num_bytes = sum(shape.num_bytes for shape in shapes.values())
    with output_folder.made(options.to, num_bytes) as work:
        shards = cut_into_shards(shapes, round(options.shard_gigabytes * 1e9))
        write_tensors(work, shards, source)
        _write_settings(work, source, shapes, tokenizer)
        seal_folder(work)
    num_parameters = source.num_parameters
    print(f"export: {len(shapes)} tensors, {num_parameters:,} parameters in {options.to}")
    if options.json is not None:
        figures = {"folder": str(options.to), "tensors": len(shapes), "parameters": num_parameters}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def stored_dtype(name: str, found: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """Return the dtype that a tensor is written in: nothing narrows what training keeps wide."""
    if wanted is None or (name.startswith("scalars.") and wanted.itemsize < found.itemsize):
        return found
    return wanted


def write_tensors(
    folder: Path, shards: dict[str, dict[str, TensorShape]], source: ModelFiles
) -> None:
    """Write a model's tensors, in the dtypes that the shards name, and their index."""
    shapes = {name: shape for shard in shards.values() for name, shape in shard.items()}
    total = sum(shape.num_bytes for shape in shapes.values())
    with byte_progress("writing", total) as advance:

        def make(theirs: str) -> Tensor:
            advance(shapes[theirs].num_bytes)
            return source.read_finite(our_name(theirs)).to(shapes[theirs].dtype)

        for name, shard in shards.items():
            write_shard(folder / name, shard, make)
    write_index(folder, shards)


def _write_settings(
    work: Path, source: ModelFiles, shapes: dict[str, TensorShape], tokenizer: Path
) -> None:
    """Write config.json, generation_config.json, the code, and the tokenizer's files."""
    dtype = shapes[released_name("norm.weight")].dtype
    end = _end_id(tokenizer)
    ends = {} if end is None else {"eos_token_id": end}
    (work / CONFIG).write_text(hf_config(source.args, dtype, auto_map=AUTO_MAP, **ends))
    generation = {"do_sample": False, **ends}
    if end is not None:
        generation["pad_token_id"] = end
    (work / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    shutil.copyfile(Path(__file__).with_name(CODE), work / CODE)
    output_folder.copy_files(tokenizer, work, output_folder.TOKENIZER_FILES)


def _end_id(tokenizer: Path) -> int | None:
    """Return the id of the token that ends a document, None where there is no tokenizer."""
    if not (tokenizer / "tokenizer.json").is_file():
        return None
    return load_tokenizer(tokenizer).end_id
