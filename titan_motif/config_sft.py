"""What a fine-tuning job, and what is packed for it, must be: each rule tells the key and why."""

from collections.abc import Iterator
from pathlib import Path

from titan_motif.components.preparation.inputs import find_inputs
from titan_motif.components.preparation.manifest import MANIFEST, load_manifest
from titan_motif.components.sft.template import load_template
from titan_motif.config import JobConfig
from titan_motif.config_data import Sft
from titan_motif.config_keys import Finding
from titan_motif.config_ranges import check_ranges
from titan_motif.config_types import told
from titan_motif.sft import chat_options


def check_sft(config: JobConfig) -> Iterator[Finding]:
    """Yield what is wrong with a fine-tuning job's settings, its files aside."""
    sft, unset = config.sft, Sft()
    if not sft.enable:
        for name, value in vars(sft).items():
            if value != getattr(unset, name):
                yield f"sft.{name}", f"is {told(value)}; it needs sft.enable to be true"
        return
    if not sft.data:
        yield "sft.data", "is empty; files of conversations are needed"
    yield from check_ranges(config, ("sft.epochs", "sft.validation_share"))
    if config.validation.enable and sft.validation_share == 0:
        yield "sft.validation_share", "is 0; validation.enable is true, and needs some samples"
    if config.validation.enable and config.validation.seq_len != config.training.seq_len:
        yield (
            "validation.seq_len",
            f"is {config.validation.seq_len}; samples are packed into sequences of "
            f"training.seq_len, {config.training.seq_len}",
        )
    if config.curriculum.enable and (config.curriculum.sources or config.curriculum.phases):
        yield "sft.enable", "is true; the curriculum has sources or phases: sft.data is read alone"


def check_inputs(config: JobConfig) -> Iterator[Finding]:
    """Yield what is not there of what a fine-tuning job packs, or is no template."""
    try:
        find_inputs(config.sft.data)
    except (ValueError, OSError) as error:
        yield "sft.data", f"is {told(config.sft.data)}; {error}"
    try:
        load_template(config.model.hf_assets_path, config.sft.chat_template)
    except (ValueError, OSError) as error:
        yield "sft.chat_template", f"is {told(config.sft.chat_template)}; {error}"


def check_packed(config: JobConfig) -> Iterator[Finding]:
    """Yield what is wrong with what a fine-tuning job is to read; its inputs are checked before."""
    folder = Path(config.training.dataset_path)
    if not (folder / MANIFEST).is_file():
        yield (
            "training.dataset_path",
            f"is {str(folder)!r}; the conversations of sft.data are not packed there yet: "
            "run_train.sh does so before it starts a job, PREPARE_ONLY=1 that alone",
        )
        return
    manifest = load_manifest(folder)
    found = manifest.get("chat", {})
    for name, value in vars(chat_options(config)).items():
        if found.get(name) != value:
            told = f"with {name} {found.get(name)!r}, and the job has {value!r}"
            yield _packed_otherwise(folder, told)
            return
    template = load_template(config.model.hf_assets_path, config.sft.chat_template)
    if manifest["chat_template"]["sha256"] != template.sha256:
        told = f"with another chat template than that of {template.origin}, which the job has"
        yield _packed_otherwise(folder, told)
    inputs = [(one.path, one.num_bytes) for one in find_inputs(config.sft.data)]
    # Hashing them at every start, on every rank, would take long: run_train.sh does so once.
    packed = [(one["path"], one["bytes"]) for one in manifest["inputs"]]
    if packed != inputs:
        yield _packed_otherwise(folder, f"of {_told(packed)}, and the job has {_told(inputs)}")


def _told(inputs: list[tuple[str, int]]) -> str:
    """Return a listing of files in a few words."""
    path, _ = inputs[0]
    more = f" and {len(inputs) - 1} more" if len(inputs) > 1 else ""
    return f"{path}{more} ({sum(size for _, size in inputs):,} bytes)"


def _packed_otherwise(folder: Path, how: str) -> Finding:
    told = f"is {str(folder)!r}; it is packed {how}: name another folder, or remove that one"
    return "training.dataset_path", told
