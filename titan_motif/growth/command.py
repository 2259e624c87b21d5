"""`titan-motif grow`: a larger model from a smaller one, with the same function."""

import json
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import torch
from torch import Tensor

from titan_motif.components.curriculum.sources import TokenFile
from titan_motif.config_loading import load_config
from titan_motif.curriculum import sources_of
from titan_motif.growth.grow import REPORT, GrowthOptions, grow, plan_growth
from titan_motif.growth.mapping import changes_of_function
from titan_motif.growth.verify import Differences, compare
from titan_motif.interchange import output_folder
from titan_motif.interchange.model_files import ModelFiles, network_of, open_model

BOUNDS = {torch.float64: 1e-10, torch.float32: 2e-5}
"""How far logits and hidden states may be apart where nothing but the arithmetic's dtype rounds."""
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-23, torch.float64: 0.0}
"""What a weight is rounded by where a division by other than a power of 2 is stored."""


@dataclass
class Options:
    """Grow a model to the network of a job: wider, deeper, more signal heads for each noise head.

    The result is a directory of safetensors under the released names, sealed; a job begins from it
    with checkpoint.initial_load_path and checkpoint.initial_load_in_hf.

    Example: titan-motif grow --from small/checkpoint/step-1000 --to data/grown --config my.toml
    """

    from_: output_folder.From
    """The small model: a DCP step, or a directory of safetensors."""
    to: Path
    """The folder to write; nothing is ever replaced."""
    config: Path
    """The job whose network it becomes."""
    from_config: Path | None = None
    """The small model's job, where its folder does not tell its network."""
    allow: tuple[Literal["rope_theta", "lam_init"], ...] = ()
    """What may change the function; by how much is measured and printed."""
    dtype: Literal["same", "bfloat16", "float32", "float64"] = "same"
    """Of the tensors written; 'same' is the small model's."""
    snr_db: float | None = None
    """Add noise that cancels over the copies, at this signal-to-noise ratio: without it copies
    receive equal gradients and never part."""
    seed: int = 0
    """Of the noise."""
    optimizer: Literal["reset", "grown"] = "reset"
    """'grown' writes a DCP step with the optimizer's states grown like the gradients; a job begins
    from it with initial_load_model_only = false, and with lr_scheduler, dataloader and train_state
    in exclude_from_loading."""
    shard_gigabytes: float = 4.0
    """Largest file, but for a tensor that is larger."""
    verify: bool = True
    """Run both models layer by layer on the same tokens and compare them."""
    verify_tokens: int = 32
    """Tokens of each of the two sequences of a batch."""
    json: Path | None = None
    """Write the figures to this file."""


def main(options: Options) -> None:
    """Grow a model, compare it with the small one, and write it."""
    if not 0 < options.shard_gigabytes < float("inf"):
        raise ValueError(f"--shard-gigabytes is {options.shard_gigabytes}; more than 0 is needed")
    if options.snr_db is not None and not -100 < options.snr_db < 300:
        raise ValueError(f"--snr-db is {options.snr_db}; -100 to 300 is allowed")
    if options.verify_tokens < 1:
        raise ValueError(f"--verify-tokens is {options.verify_tokens}; at least 1 is needed")
    begin = time.perf_counter()
    source = open_model(options.from_, options.from_config)
    wanted = network_of(options.config)
    large = plan_growth(source.args, wanted, options.allow)
    dtype = source.dtype if options.dtype == "same" else getattr(torch, options.dtype)
    max_bytes = round(options.shard_gigabytes * 1e9)
    with_optimizer = options.optimizer == "grown"
    how = GrowthOptions(dtype, options.snr_db, options.seed, max_bytes, with_optimizer)
    folder = grow(source, large, options.to, how)
    grown = open_model(folder)
    seconds = time.perf_counter() - begin
    print(
        f"grow: {len(grown.tensors)} tensors, {grown.num_parameters:,} parameters in {folder} "
        f"after {seconds:.1f} s; what came from where: {folder / REPORT}"
    )
    if large.lam_init != wanted.lam_init:
        told = ", ".join(f"{value!r}" for value in large.lam_init)
        print(
            "grow: lambda's constants are those of the small model's layers; a job that trains the "
            f"grown model needs\n[model.args]\nlam_init = [{told}]"
        )
    found: dict[str, Any] = {}
    changes = changes_of_function(source.args, large)
    if options.verify or changes:
        try:
            found = _verify(source, grown, options, changes)
        except ValueError as error:
            wrong = folder.with_name(f"{folder.name}.wrong")
            folder.rename(wrong)
            raise ValueError(f"{error}; it lies in {wrong}") from None
    if options.json is not None:
        content = {
            "folder": str(folder),
            "tensors": len(grown.tensors),
            "parameters": grown.num_parameters,
            "seconds": seconds,
            "lam_init": large.lam_init,
            "changes": changes,
            "differences": found,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _verify(
    source: ModelFiles, grown: ModelFiles, options: Options, changes: dict[str, str]
) -> dict[str, Any]:
    """Print and return the differences; ValueError if the function was to be kept and is not."""
    found: dict[str, Any] = {}
    for kind, tokens in _batches(source, options).items():
        for dtype, bound in BOUNDS.items():
            name = str(dtype).removeprefix("torch.")
            differences = compare(source, grown, tokens, dtype)
            found[f"{kind} {name}"] = differences._asdict()
            print(
                f"grow: {kind} tokens, {name}: largest relative difference of hidden states "
                f"{max(differences.hidden):.2e}, of logits {differences.logits:.2e}"
            )
            if not changes:
                _check(differences, max(bound, 8 * _stored_rounding(source, grown)))
    for name, told in changes.items():
        print(f"grow: {name} {told} was allowed: the differences above are its effect")
    return found


def _stored_rounding(source: ModelFiles, grown: ModelFiles) -> float:
    """Return what the stored weights are rounded by: nothing, if copies are halved alone."""
    small, large = source.args, grown.args
    names = ("dim", "hidden_dim", "num_signal_heads")
    times = [Fraction(getattr(large, name), getattr(small, name)) for name in names]
    is_halved = all(n.denominator == 1 and n.numerator.bit_count() == 1 for n in times)
    is_narrower = grown.dtype.itemsize < source.dtype.itemsize
    return 0.0 if is_halved and not is_narrower else ROUNDING[grown.dtype]


def _check(differences: Differences, bound: float) -> None:
    if not differences.largest <= bound:
        worst = max(range(len(differences.hidden)), key=differences.hidden.__getitem__)
        raise ValueError(
            f"the grown model computes something else: hidden states differ by "
            f"{differences.hidden[worst]:.2e} after {worst} layers, logits by "
            f"{differences.logits:.2e}; {bound:.0e} is the bound"
        )


def _batches(source: ModelFiles, options: Options) -> dict[str, Tensor]:
    """Return random tokens, and real ones if the job's data are there."""
    length = min(options.verify_tokens, source.args.max_seq_len)
    generator = torch.Generator().manual_seed(options.seed)
    shape = (2, length)
    batches = {"random": torch.randint(source.args.vocab_size, shape, generator=generator)}
    arguments = ["--job.config_file", str(options.config)]
    for data in sources_of(load_config(arguments, None, runs_here=False)):
        if (data.folder / "train" / "tokens.npy").is_file():
            read = TokenFile(data.folder / "train", 2 * length).tokens[: 2 * length]
            if int(read.max()) >= source.args.vocab_size:
                print("grow: the job's data are of another vocabulary: random tokens alone")
            else:
                batches["real"] = torch.from_numpy(read.astype("int64")).view(shape)
            break
    return batches
