"""Settings by their keys, section.field: all of them, a job's values, what is wrong with one."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from titan_motif.config import JobConfig

Finding = tuple[str, str]
"""What is wrong with a job: the key, and the rest of the sentence about it."""


def all_keys(section: type = JobConfig, prefix: str = "") -> Iterator[str]:
    """Yield every setting of a job as section.field, in the order of the sections."""
    for entry in fields(section):
        if is_dataclass(entry.type):
            yield from all_keys(entry.type, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}"


def value_of(config: JobConfig, key: str) -> Any:
    """Return the value of section.field."""
    for name in key.split("."):
        config = getattr(config, name)
    return config
