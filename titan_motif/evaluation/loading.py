"""A trained model, whole and on one device, and its tokenizer, from what a run has written."""

import sys
from pathlib import Path

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import torch

from titan_motif.components.preparation.tokenizer import DocumentTokenizer, load_tokenizer
from titan_motif.components.progress import byte_progress
from titan_motif.components.saved_steps import step_to_begin_from
from titan_motif.config_loading import load_config
from titan_motif.interchange.model_files import open_model
from titan_motif.model import Motif2Model, Motif2ModelArgs
from titan_motif.run_folder import RESOLVED_CONFIG, resolved_config_of


def newest_step(path: Path) -> Path:
    """Return the newest whole step of a run's checkpoint folder, saying which; else the path."""
    found = Path(step_to_begin_from(path))
    if found != path:
        print(f"{path}: reading its newest step, {found.name}", file=sys.stderr)
    return found


def load_model(
    path: str | Path,
    config: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Motif2Model:
    """Return a model in eval mode, from a DCP step of any number of ranks or from safetensors.

    Memory is that of the model and of one tensor. lambda's vectors and PolyNorm's coefficients are
    in float32 at least, as in training.

    Args:
        config: a job's TOML file that tells the network, where the folder does not
        dtype:  of all other parameters, and of the arithmetic; None is that of the files
    Raises: ValueError, one line, naming the file or the tensor that is wrong, or the device
    """
    device = usable_device(device)
    files = open_model(path, config)
    dtype = files.dtype if dtype is None else dtype
    model = empty_model(files.args, device, dtype)
    with torch.no_grad(), byte_progress("reading", files.num_bytes) as advance:
        for name, parameter in model.named_parameters():
            parameter.copy_(files.read_finite(name))
            advance(files.tensors[name].num_bytes)
    return model


def empty_model(args: Motif2ModelArgs, device: torch.device, dtype: torch.dtype) -> Motif2Model:
    """Return a model in eval mode, its parameters in their dtypes, but without their values.

    lambda's vectors and PolyNorm's coefficients are in float32 at least, as in training.
    """
    with torch.device("meta"):
        model = Motif2Model(args)
    model.to(dtype)
    model.scalars.float()  # lambda's constants are rounded to float32, as the trainer has them
    model.to_empty(device=device)
    model.scalars.reset_buffers()
    model.attention_record.reset()
    model.scalars.to(torch.promote_types(dtype, torch.float32))
    return model.requires_grad_(False).eval()


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device that is there; ValueError, one line, if it is not."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device is {str(device)!r}; it cannot be used ({reason})") from None
    return found


def dtype_named(name: str, device: torch.device) -> torch.dtype | None:
    """Return what --dtype stands for: 'auto' depends on the device, 'same' (None) on the files."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return None if name == "same" else getattr(torch, name)


def tokenizer_folder_of(path: str | Path, chosen: str | Path | None = None) -> Path:
    """Return the folder of a model's tokenizer: the chosen one, its own, or its run's.

    Raises: ValueError, one line, if none of them holds tokenizer.json
    """
    path = Path(path)
    if chosen is not None or (path / "tokenizer.json").is_file():
        return _with_tokenizer(path if chosen is None else Path(chosen), "--tokenizer")
    resolved = resolved_config_of(path)
    if resolved is None:
        raise ValueError(
            f"{path}: what tokenizer it has is not known: neither tokenizer.json in it nor the "
            f"run's {RESOLVED_CONFIG} two folders above; name its folder with --tokenizer"
        )
    job = load_config(["--job.config_file", str(resolved)], None, runs_here=False)
    return _with_tokenizer(Path(job.model.hf_assets_path), f"{resolved}: model.hf_assets_path")


def tokenizer_of(path: str | Path, chosen: str | Path | None = None) -> DocumentTokenizer:
    """Return the tokenizer in `tokenizer_folder_of` the same."""
    return load_tokenizer(tokenizer_folder_of(path, chosen))


def check_vocabulary(num_entries: int, folder: Path, args: Motif2ModelArgs) -> None:
    """Raise ValueError, one line, if a folder's tokenizer has more entries than a network."""
    if num_entries > args.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {num_entries} entries; the network knows "
            f"{args.vocab_size}"
        )


def _with_tokenizer(folder: Path, named_by: str) -> Path:
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{named_by} is {str(folder)!r}; it holds no tokenizer.json: name the tokenizer's "
            "folder with --tokenizer"
        )
    return folder
