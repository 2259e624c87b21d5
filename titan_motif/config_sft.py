"""What a fine-tuning job, and what is packed for it, must be: each rule tells the key and why."""

from collections.abc import Iterator
from pathlib import Path

from titan_motif.components.preparation.inputs import find_inputs
from titan_motif.components.preparation.manifest import MANIFEST, load_manifest
from titan_motif.components.preparation.prepare import MAX_VALIDATION_SHARE
from titan_motif.components.sft.template import load_template
from titan_motif.config import JobConfig
from titan_motif.config_data import Sft
from titan_motif.config_keys import Finding
from titan_motif.sft import chat_options


def check_sft(config: JobConfig) -> Iterator[Finding]:
    """Yield what is wrong with a fine-tuning job's settings, its files aside."""
    sft, unset = config.sft, Sft()
    if not sft.enable:
        for name, value in vars(sft).items():
            if value != getattr(unset, name):
                yield f"sft.{name}", f"is {value!r}; it needs sft.enable to be true"
        return
    if not sft.data:
        yield "sft.data", "is empty; files of conversations are needed"
    if not 0 < sft.epochs < float("inf"):
        yield "sft.epochs", f"is {sft.epochs}; more than 0 is needed"
    if not 0 <= sft.validation_share <= MAX_VALIDATION_SHARE:
        told = f"is {sft.validation_share}; 0 to {MAX_VALIDATION_SHARE} is allowed"
        yield "sft.validation_share", told
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


def check_packed(config: JobConfig) -> Iterator[Finding]:
    """Yield what is wrong with what a fine-tuning job is to read."""
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
    try:
        template = load_template(config.model.hf_assets_path, config.sft.chat_template)
    except ValueError as error:
        yield "sft.chat_template", f"is what is packed with; {error}"
        return
    if manifest["chat_template"]["sha256"] != template.sha256:
        told = f"with another chat template than that of {template.origin}, which the job has"
        yield _packed_otherwise(folder, told)
    try:
        inputs = [(one.path, one.num_bytes) for one in find_inputs(config.sft.data)]
    except ValueError as error:
        yield "sft.data", f"is what is packed; {error}"
        return
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
