"""The curriculum of a job: its sections, and the plan and the sources that they stand for.

A job without sources has them implied: the groups of the built-in corpus, or the one folder of
`training.dataset_path`. One without phases has one, of `training.steps` equal steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tyro

from titan_motif.components.curriculum.loader import CurriculumLoader, DocumentInputs
from titan_motif.components.curriculum.micro_batches import Share
from titan_motif.components.curriculum.schedule import Phase, RunPlan, find_problems, plan_run
from titan_motif.components.curriculum.sources import TokenFile, TokenStream
from titan_motif.components.preparation.manifest import MANIFEST, check_tokenizer, load_manifest
from titan_motif.corpus.prepare import GROUPS as BUILTIN_GROUPS

if TYPE_CHECKING:
    from titan_motif.config import JobConfig

IMPLIED_GROUP = "all"
"""The group of implied sources where no phase names groups."""


@dataclass
class SourceSettings:
    """A `[[curriculum.sources]]` table: prepared tokens that belong to a group."""

    name: str = ""
    """Its name in checkpoints, logs and traces."""
    group: str = ""
    """The group whose share it is part of."""
    path: str = ""
    """Its folder, with train/tokens.npy; relative to training.dataset_path."""
    format: Literal["prepared"] = "prepared"
    """'prepared': what `titan-motif data prepare` writes."""
    weight: float = -1.0
    """Its part of the group's share, beside the group's other sources; -1 is its tokens, so that
    all of them are read equally often."""


@dataclass
class PhaseSettings:
    """A `[[curriculum.phases]]` table: a stretch of the run."""

    name: str = ""
    """What it is called in tables and pictures."""
    until_tokens: int = -1
    """Tokens of the run at which it ends."""
    until_share: float = -1.0
    """The same as a share of curriculum.total_tokens."""
    seq_len: int = -1
    """Tokens of a sequence."""
    global_batch_tokens: int = -1
    """Tokens that all ranks take together in a step."""
    global_batch_tokens_end: int = -1
    """The same at the phase's end, reached linearly; -1 is global_batch_tokens."""
    weights_start: dict[str, float] = field(default_factory=dict)
    """Share of each group at its beginning; they sum to 1."""
    weights_end: dict[str, float] = field(default_factory=dict)
    """The same at its end, reached linearly in tokens; empty is weights_start."""


@dataclass
class Curriculum:
    """What is read when: sources in groups, and phases of mixture, length and batch size."""

    enable: bool = True
    """Read sources and phases; false leaves both out, as for a trial of a large job on one GPU."""
    sources: tyro.conf.Fixed[list[SourceSettings]] = field(default_factory=list)
    """The data; none means all that lies in training.dataset_path, equally often."""
    phases: tyro.conf.Fixed[list[PhaseSettings]] = field(default_factory=list)
    """The run, its lengths and batches; none means training.steps equal steps."""
    total_tokens: int = -1
    """Tokens of the run, of which phases take their until_share."""
    local_batch_tokens: int = -1
    """Tokens of a rank's micro-batch, whatever the length of its sequences (one of them at least);
    -1 is one micro-batch a step."""
    batch_multiple: int = 1
    """Sequences that batches are multiples of: the number of ranks, and no rank waits for another
    in a ramp."""
    caps: tyro.conf.Fixed[dict[str, float]] = field(default_factory=dict)
    """Largest share that a group may have, in every 1024 sequences."""

    def __post_init__(self) -> None:
        # torchtitan's own entry hands over what TOML has: tables.
        self.sources = [SourceSettings(**s) if isinstance(s, dict) else s for s in self.sources]
        self.phases = [PhaseSettings(**p) if isinstance(p, dict) else p for p in self.phases]


class Source(NamedTuple):
    """A source of a run."""

    name: str
    group: str
    folder: Path
    weight: float
    """Part of its group's share before they are made to sum to 1; -1 is its tokens."""


def has_phases(config: "JobConfig") -> bool:
    """Return whether phases decide length and batch."""
    return config.curriculum.enable and bool(config.curriculum.phases)


def sources_of(config: "JobConfig") -> list[Source]:
    """Return the sources of a job, those of a group together."""
    root, curriculum = Path(config.training.dataset_path), config.curriculum
    if curriculum.enable and curriculum.sources:
        groups = list(dict.fromkeys(source.group for source in curriculum.sources))
        return [
            Source(source.name, source.group, root / source.path, source.weight)
            for source in sorted(curriculum.sources, key=lambda source: groups.index(source.group))
        ]
    by_group = has_phases(config)
    if config.training.dataset == "builtin":
        return [
            Source(name, name if by_group else IMPLIED_GROUP, root / name, -1.0)
            for name in BUILTIN_GROUPS
        ]
    return [Source(root.name, IMPLIED_GROUP, root, -1.0)]


def phases_of(config: "JobConfig", world_size: int | None) -> list[Phase]:
    """Return the phases of a job, implied ones too; none where those need the number of ranks."""
    if has_phases(config):
        return [_phase(config, settings) for settings in config.curriculum.phases]
    training = config.training
    sequences = training.global_batch_size
    if sequences <= 0:
        if world_size is None:
            return []
        ranks = world_size // max(config.parallelism.tensor_parallel_degree, 1)
        sequences = training.local_batch_size * ranks
    batch = sequences * training.seq_len
    groups = {source.group for source in sources_of(config)}
    weights = {group: 1 / len(groups) for group in groups}
    if min(batch, training.steps) < 1:
        return []
    return [Phase("all", training.steps * batch, training.seq_len, batch, batch, weights, weights)]


def _phase(config: "JobConfig", settings: PhaseSettings) -> Phase:
    until = settings.until_tokens
    if settings.until_share != -1:
        until = round(settings.until_share * config.curriculum.total_tokens)
    batch, end = settings.global_batch_tokens, settings.global_batch_tokens_end
    start_weights = settings.weights_start
    return Phase(
        settings.name,
        until,
        settings.seq_len,
        batch,
        batch if end == -1 else end,
        start_weights,
        settings.weights_end or start_weights,
    )


def plan_of(config: "JobConfig", world_size: int | None) -> RunPlan | None:
    """Return what a job reads when; None where its settings do not make a plan."""
    phases = phases_of(config, world_size)
    groups = [source.group for source in sources_of(config)]
    multiple = config.curriculum.batch_multiple if has_phases(config) else 1
    if not phases or multiple < 1 or find_problems(phases, groups, {}, multiple):
        return None
    return plan_run(phases, multiple)


def shares(sources: list[Source], files: list[TokenFile]) -> list[tuple[str, str, float]]:
    """Return (name, group, share within its group) of every source."""
    weights = [
        float(len(file)) if source.weight == -1 else source.weight
        for source, file in zip(sources, files, strict=True)
    ]
    totals: dict[str, float] = {}
    for source, weight in zip(sources, weights, strict=True):
        totals[source.group] = totals.get(source.group, 0.0) + weight
    return [
        (source.name, source.group, weight / totals[source.group])
        for source, weight in zip(sources, weights, strict=True)
    ]


def build_loader(
    config: "JobConfig",
    rank: int,
    ranks: int,
    documents: DocumentInputs | None = None,
    workers: dict[str, Any] | None = None,
    pins: bool = False,
) -> CurriculumLoader:
    """Build the loader of one data-parallel rank of a job that `resolve` has settled.

    Raises: ValueError for a curriculum that cannot be planned, or a source without tokens
    """
    for key, message in check_curriculum(config):  # nothing has, under torchtitan's own entry
        raise ValueError(f"{key} {message}")
    plan, training, seed = config.lr_scheduler.plan, config.training, config.debug.seed or 0
    assert plan is not None
    sources = sources_of(config)
    files = [TokenFile(source.folder / "train") for source in sources]
    local_batch_tokens = config.curriculum.local_batch_tokens
    if not has_phases(config):
        local_batch_tokens = training.local_batch_size * training.seq_len
    return CurriculumLoader(
        plan,
        shares(sources, files),
        [
            TokenStream(file, source.name, seed, cell_tokens=training.seq_len)
            for source, file in zip(sources, files, strict=True)
        ],
        seed,
        Share(rank, ranks, local_batch_tokens),
        documents,
        workers,
        pins,
    )


# ---- what is wrong with one


def check_curriculum(config: "JobConfig") -> Iterator[tuple[str, str]]:
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
    for name in ("total_tokens", "local_batch_tokens"):
        value = getattr(curriculum, name)
        if value != -1 and value < 1:
            yield f"curriculum.{name}", f"is {value}; -1 or at least 1 is needed"
    if curriculum.batch_multiple < 1:
        told = f"is {curriculum.batch_multiple}; at least 1 is needed"
        yield "curriculum.batch_multiple", told
        return
    ends = list(_check_phase_ends(curriculum))
    yield from ends
    if ends:
        return
    groups = list(dict.fromkeys(source.group for source in sources_of(config)))
    phases = phases_of(config, None)
    for problem in find_problems(phases, groups, curriculum.caps, curriculum.batch_multiple):
        yield f"curriculum.{problem.field}", problem.message


def _check_sources(curriculum: Curriculum) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for i, source in enumerate(curriculum.sources):
        where = f"curriculum.sources.{i + 1}"
        for name in ("name", "group", "path"):
            if not getattr(source, name):
                yield f"{where}.{name}", "is empty; a text is needed"
        if source.name in seen:
            yield f"{where}.name", f"is {source.name!r}; another source has that name"
        seen.add(source.name)
        if source.weight != -1 and not 0 < source.weight < float("inf"):
            told = f"is {source.weight}; -1 (its tokens) or more than 0 is needed"
            yield f"{where}.weight", told
        same_group = [s.weight == -1 for s in curriculum.sources if s.group == source.group]
        if any(same_group) and not all(same_group):
            told = f"is {source.weight}; of group {source.group!r} all sources have one, or none"
            yield f"{where}.weight", told


def _check_phase_ends(curriculum: Curriculum) -> Iterator[tuple[str, str]]:
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


def check_source_files(config: "JobConfig", vocab_size: int) -> Iterator[tuple[str, str]]:
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
        except ValueError as error:
            yield key, f"{told}{error}"


def sources_without_manifest(config: "JobConfig") -> list[str]:
    """Return the sources that nothing but their own files tells of."""
    if config.training.dataset == "builtin":  # checked as a whole, when it was prepared
        return []
    return [
        source.name for source in sources_of(config) if not (source.folder / MANIFEST).is_file()
    ]


def _check_manifest(folder: Path, tokenizer: str) -> dict[str, Any]:
    """Return a source's manifest, an empty one for tokens of one's own making, which have none."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = load_manifest(folder)
    check_tokenizer(manifest, Path(tokenizer))
    return manifest
