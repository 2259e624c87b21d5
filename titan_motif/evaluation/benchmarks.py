"""Tasks on a model in memory: loaded once, run on as many models as wanted.

What `titan-motif evaluate` does with a saved model. It needs lm-evaluation-harness
(titan_motif.harness.installed tells whether it is there).
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from titan_motif import __version__
from titan_motif.evaluation import harness_tasks
from titan_motif.evaluation.harness_model import HarnessModel
from titan_motif.evaluation.local_tasks.setting import Setting
from titan_motif.evaluation.ranks import Ranks
from titan_motif.evaluation.results import figures_of
from titan_motif.harness.manager import manager_of
from titan_motif.harness.package import VERSION
from titan_motif.harness.presets import Wanted
from titan_motif.model import Motif2Model


@dataclass(frozen=True)
class Settings:
    """How tasks are put to a model; None is a task's own, of `max_length` the network's."""

    num_fewshot: int | None = None
    limit: int | None = None
    """Documents of each task."""
    batch_size: int = 8
    max_length: int | None = None
    max_new_tokens: int | None = None
    chat: bool = False
    system: str | None = None


class Benchmarks:
    """The tasks that are wanted, their data loaded: the harness's at once, ours by `complete`.

    Args:
        tokenizer_folder: the model's tokenizer, and its chat template if there is one
        include_paths:    folders with tasks of the user's
        is_verbose:       whether what the harness logs is shown
    Raises: ValueError, one line, for a task that is not known, not allowed, or lacks its data
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        tokenizer_folder: Path,
        settings: Settings,
        include_paths: Sequence[Path] = (),
        is_verbose: bool = False,
    ) -> None:
        self.wanted, self.folder, self.settings = wanted, tokenizer_folder, settings
        self.manager = manager_of(wanted, include_paths, is_verbose)
        self.items = harness_tasks.load_harness_tasks(self.manager, wanted)
        self.loaded: dict[str, Any] = {}

    def model(self, network: Motif2Model, ranks: Ranks) -> HarnessModel:
        """Return a whole network on one device as the harness asks it."""
        settings = self.settings.batch_size, self.settings.max_length, self.settings.chat
        return HarnessModel(network, self.folder, *settings, ranks=ranks)

    def complete(self, model: HarnessModel, groups: Mapping[str, Sequence[Path]]) -> None:
        """Load our own tasks, as they are for such a model.

        Args: groups: the folders of each group's held-out splits, for `perplexity`
        Raises: ValueError, one line, if a task lacks its data, has too few for all ranks, or asks
                for what the model cannot generate
        """
        settings = self.settings
        setting = Setting(self.folder, model.max_length, settings.chat, groups)
        local = harness_tasks.load_local_tasks(self.manager, self.wanted, setting)
        self.loaded = self.manager.load([*self.items, *local])
        for task in self.loaded["tasks"].values():
            _check_size(task, model.ranks.size, settings.limit)
            harness_tasks.prepare_generation(task, model, settings.max_new_tokens)
            if settings.num_fewshot is not None:
                harness_tasks.set_shots(task, settings.num_fewshot)

    def run(self, model: HarnessModel) -> dict[str, Any] | None:
        """Return the figures of a model as `evaluate --json` has them; None on all ranks but one.

        Every rank has to call it.
        """
        begin, settings = time.perf_counter(), self.settings
        found = harness_tasks.run(
            model,
            self.loaded,
            limit=settings.limit,
            is_chat=settings.chat,
            system=settings.system,
        )
        cut = model.ranks.gather_object(model.num_cut)
        if found is None:
            return None
        versions = {"titan_motif": __version__, "lm_eval": VERSION, "torch": torch.__version__}
        return {
            "tasks": figures_of(found),
            "cut_requests": sum(cut or ()),
            "max_length": model.max_length,
            "chat": settings.chat,
            "limit": settings.limit,
            "device": str(model.device),
            "dtype": str(model.model.norm.weight.dtype).removeprefix("torch."),
            "ranks": model.ranks.size,
            "seconds": time.perf_counter() - begin,
            "versions": versions,
        }


def _check_size(task: Any, num_ranks: int, limit: int | None) -> None:
    """Raise ValueError if a rank would have no document of a task."""
    size = min(len(task.eval_docs), limit or sys.maxsize)
    if size < num_ranks:
        raise ValueError(
            f"task {task.task_name!r} has {size} documents for {num_ranks} processes; each needs "
            "at least one"
        )
