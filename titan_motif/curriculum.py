"""The curriculum of a job: the plan and the sources that its sections stand for, and the loader.

A job without sources has them implied: the groups of the built-in corpus, or the one folder of
`training.dataset_path`. One without phases has one, of `training.steps` equal steps.
"""

from pathlib import Path
from typing import Any, NamedTuple

from titan_motif.components.curriculum.loader import CurriculumLoader, DocumentInputs
from titan_motif.components.curriculum.micro_batches import Share
from titan_motif.components.curriculum.schedule import Phase, RunPlan, find_problems, plan_run
from titan_motif.components.curriculum.sources import TokenFile, TokenStream
from titan_motif.components.preparation.manifest import MANIFEST
from titan_motif.config import JobConfig
from titan_motif.config_data import PhaseSettings
from titan_motif.corpus.prepare import GROUPS as BUILTIN_GROUPS
from titan_motif.layout import data_parallel_ranks

IMPLIED_GROUP = "all"
"""The group of implied sources where no phase names groups."""


class Source(NamedTuple):
    """A source of a run."""

    name: str
    group: str
    folder: Path
    weight: float
    """Part of its group's share before they are made to sum to 1; -1 is its tokens."""


def sources_of(config: JobConfig) -> list[Source]:
    """Return the sources of a job, those of a group together."""
    root, curriculum = Path(config.training.dataset_path), config.curriculum
    if curriculum.enable and curriculum.sources:
        groups = list(dict.fromkeys(source.group for source in curriculum.sources))
        return [
            Source(source.name, source.group, root / source.path, source.weight)
            for source in sorted(curriculum.sources, key=lambda source: groups.index(source.group))
        ]
    by_group = config.curriculum.has_phases
    if config.training.dataset == "builtin":
        return [
            Source(name, name if by_group else IMPLIED_GROUP, root / name, -1.0)
            for name in BUILTIN_GROUPS
        ]
    return [Source(root.name, IMPLIED_GROUP, root, -1.0)]


def phases_of(config: JobConfig, world_size: int | None) -> list[Phase]:
    """Return the phases of a job, implied ones too; none where those need the number of ranks."""
    if config.curriculum.has_phases:
        return [_phase(config, settings) for settings in config.curriculum.phases]
    training = config.training
    sequences = training.global_batch_size
    if sequences <= 0:
        if world_size is None:
            return []
        ranks = data_parallel_ranks(config, world_size)
        sequences = training.local_batch_size * ranks
    batch = sequences * training.seq_len
    groups = {source.group for source in sources_of(config)}
    weights = {group: 1 / len(groups) for group in groups}
    if min(batch, training.steps) < 1:
        return []
    return [Phase("all", training.steps * batch, training.seq_len, batch, batch, weights, weights)]


def _phase(config: JobConfig, settings: PhaseSettings) -> Phase:
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


def plan_of(config: JobConfig, world_size: int | None) -> RunPlan | None:
    """Return what a job reads when; None where its settings do not make a plan."""
    phases = phases_of(config, world_size)
    groups = [source.group for source in sources_of(config)]
    multiple = config.curriculum.batch_multiple if config.curriculum.has_phases else 1
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
    config: JobConfig,
    rank: int,
    ranks: int,
    documents: DocumentInputs | None = None,
    workers: dict[str, Any] | None = None,
    pins: bool = False,
) -> CurriculumLoader:
    """Build the loader of one data-parallel rank of a job that `resolve` has settled.

    Raises: ValueError for a source without tokens
    """
    plan, training, seed = config.lr_scheduler.plan, config.training, config.debug.seed or 0
    assert plan is not None
    sources = sources_of(config)
    files = [TokenFile(source.folder / "train") for source in sources]
    local_batch_tokens = config.curriculum.local_batch_tokens
    if not config.curriculum.has_phases:
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


def sources_without_manifest(config: JobConfig) -> list[str]:
    """Return the sources that nothing but their own files tells of."""
    if config.training.dataset == "builtin":  # checked as a whole, when it was prepared
        return []
    return [
        source.name for source in sources_of(config) if not (source.folder / MANIFEST).is_file()
    ]
