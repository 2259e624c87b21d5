"""What a job's curriculum and its files must be: each rule gives the key and what is wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titan_motif.components.curriculum.schedule import find_problems
from titan_motif.components.curriculum.sources import TokenFile
from titan_motif.components.preparation.manifest import MANIFEST, check_tokenizer, load_manifest
from titan_motif.config import JobConfig
from titan_motif.config_data import Curriculum
from titan_motif.config_keys import Finding
from titan_motif.config_ranges import check_ranges
from titan_motif.curriculum import phases_of, sources_of

_NUMBERS = [f"curriculum.{n}" for n in ("total_tokens", "local_batch_tokens", "batch_multiple")]


def check_curriculum(config: JobConfig) -> Iterator[Finding]:
    """Yield what is wrong with a curriculum's settings, the files aside."""
    curriculum = config.curriculum
    if not curriculum.enable:
        return
    yield from _check_sources(curriculum)
    if not curriculum.phases:
        for name, default in (
            ("total_tokens", -1),
            ("local_batch_tokens", -1),
            ("batch_multiple", 1),
            ("caps", {}),
        ):
            value = getattr(curriculum, name)
            if value != default:
                yield f"curriculum.{name}", f"is {value}; it needs curriculum.phases"
        return
    ranges = list(check_ranges(config, _NUMBERS))
    yield from ranges
    if ranges:
        return
    ends = list(_check_phase_ends(curriculum))
    yield from ends
    if ends:
        return
    groups = list(dict.fromkeys(source.group for source in sources_of(config)))
    phases = phases_of(config, None)
    for problem in find_problems(phases, groups, curriculum.caps, curriculum.batch_multiple):
        yield f"curriculum.{problem.field}", problem.message


def _check_sources(curriculum: Curriculum) -> Iterator[Finding]:
    seen: set[str] = set()
    for i, source in enumerate(curriculum.sources):
        where = f"curriculum.sources.{i + 1}"
        for name in ("name", "group", "path"):
            if not getattr(source, name).strip():
                yield f"{where}.{name}", f"is {getattr(source, name)!r}; a text is needed"
        if source.name in seen:
            yield f"{where}.name", f"is {source.name!r}; another source has that name"
        seen.add(source.name)
        if source.weight != -1 and not source.weight > 0:
            told = f"is {source.weight}; -1 (its tokens) or more than 0 is needed"
            yield f"{where}.weight", told
        same_group = [s.weight == -1 for s in curriculum.sources if s.group == source.group]
        if any(same_group) and not all(same_group):
            told = f"is {source.weight}; of group {source.group!r} all sources have one, or none"
            yield f"{where}.weight", told


def _check_phase_ends(curriculum: Curriculum) -> Iterator[Finding]:
    if curriculum.total_tokens != -1 and all(p.until_share == -1 for p in curriculum.phases):
        told = f"is {curriculum.total_tokens}; it needs a phase with until_share"
        yield "curriculum.total_tokens", told
    for i, phase in enumerate(curriculum.phases):
        where = f"curriculum.phases.{i + 1}"
        if (phase.until_tokens == -1) == (phase.until_share == -1):
            yield f"{where}.until_tokens", "and until_share: one of them is needed, and only one"
        elif phase.until_share != -1:
            if not 0 < phase.until_share <= 1:
                yield f"{where}.until_share", f"is {phase.until_share}; above 0 to 1 is allowed"
            elif curriculum.total_tokens == -1:
                yield f"{where}.until_share", "is given; it needs curriculum.total_tokens"


def check_source_files(config: JobConfig, vocab_size: int) -> Iterator[Finding]:
    """Yield what is wrong with the files of a job's sources.

    Of ids a sample and what the manifest says, of a manifest's files their sizes: hashing a large
    corpus at every start would take longer than the start. `titan-motif data inspect --verify`
    reads all of it.
    """
    needs_validation = config.validation.enable
    given = bool(config.curriculum.enable and config.curriculum.sources)
    for source in sources_of(config):
        key = "curriculum.sources" if given else "training.dataset_path"
        told = f"has {source.name!r}; " if given else f"is {config.training.dataset_path!r}; "
        try:
            manifest = _check_manifest(source.folder, config.model.hf_assets_path)
            for split in ("train", "validation") if needs_validation else ("train",):
                section = config.training if split == "train" else config.validation
                file = TokenFile(source.folder / split, at_least=section.seq_len + 1)
                if file.is_packed and not config.training.mask_documents:
                    yield (
                        "training.mask_documents",
                        f"is false; {source.name!r} holds packed samples, which it keeps apart",
                    )
                least, largest = file.sampled_range()
                largest = max(largest, manifest.get("largest_id", 0))
                if least < 0 or largest >= vocab_size:
                    raise ValueError(
                        f"{split}/tokens.npy holds the ids {least} to {largest}, of which the "
                        f"model's vocabulary has 0 to {vocab_size - 1}"
                    )
        except (ValueError, OSError) as error:
            yield key, f"{told}{error}"


def _check_manifest(folder: Path, tokenizer: str) -> dict[str, Any]:
    """Return a source's manifest, an empty one for tokens of one's own making, which have none."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = load_manifest(folder)
    check_tokenizer(manifest, Path(tokenizer))
    return manifest
