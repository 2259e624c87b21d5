"""The harness's own knowledge of its tasks, and of those in the user's folders."""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from titan_motif.harness.package import TaskManager
from titan_motif.harness.presets import Wanted


def manager_of(
    wanted: Sequence[Wanted], include_paths: Sequence[Path] = (), is_verbose: bool = False
) -> TaskManager:
    """Return what knows the harness's tasks, and those in the user's folders.

    The harness's 13,000 files take ten seconds to read: they are not where only ours are wanted,
    and once in a process.

    Raises: ValueError if a folder is not there
    """
    logging.getLogger("lm_eval").setLevel(logging.INFO if is_verbose else logging.ERROR)
    for path in include_paths:
        if not path.is_dir():
            raise ValueError(f"--include-path is {path}; a folder with tasks is needed")
    needs_harness = not all(task.is_local for task in wanted)
    return _manager(tuple(map(str, include_paths)), needs_harness)


@functools.cache
def _manager(include_paths: tuple[str, ...], include_defaults: bool) -> TaskManager:
    return TaskManager(include_path=list(include_paths) or None, include_defaults=include_defaults)
