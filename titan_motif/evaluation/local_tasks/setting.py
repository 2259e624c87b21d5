"""What local tasks are made for, and the data set of one in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

Task = dict[str, Any]
"""The configuration of a task, as the harness's YAML files have it."""


@dataclass(frozen=True)
class Setting:
    """A model and its data, as far as tasks depend on them."""

    tokenizer_folder: Path
    max_length: int
    """Tokens that the network is given at most."""
    is_chat: bool = False
    groups: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """The folders of each group's held-out splits."""


def in_memory(**splits: Sequence[Mapping[str, Any]]) -> Callable[..., DatasetDict]:
    """Return what a task's `custom_dataset` has to be: a function that returns its splits."""

    def make(**_: Any) -> DatasetDict:
        return DatasetDict({name: Dataset.from_list(list(rows)) for name, rows in splits.items()})

    return make


def mean_of(*names: str) -> list[dict[str, Any]]:
    """Return the metrics of a task that are means over its documents, the more the better."""
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]
