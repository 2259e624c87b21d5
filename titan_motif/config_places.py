"""Where a job writes, and the module that it imports: each rule gives the key and what is wrong."""

import importlib.util
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from titan_motif.config import JobConfig
from titan_motif.config_keys import Finding
from titan_motif.config_types import told


def check_places(config: JobConfig) -> Iterator[Finding]:
    """Yield every folder that cannot be made here or written into; nothing is written."""
    for key, folder, name in _folders(config):
        problem = folder_problem(folder)
        if problem is not None:
            yield key, f"is {told(name)}; {problem}: a folder that can be written into is needed"
            return
    prefix = config.comm.save_traces_file_prefix
    if "/" in prefix:
        told_prefix = f"is {told(prefix)}; the beginning of a file's name is needed, without '/'"
        yield "comm.save_traces_file_prefix", told_prefix
    module = config.experimental.custom_import
    if module and not _can_be_found(module):
        yield (
            "experimental.custom_import",
            f"is {told(module)}; Python finds no such module here: a name as in an import is "
            "needed",
        )


def _folders(config: JobConfig) -> Iterator[tuple[str, Path, str]]:
    """Yield (key, folder, what the key says) of all that a run writes into."""
    run = Path(config.job.dump_folder)
    yield "job.dump_folder", run, config.job.dump_folder
    checkpoint, metrics, comm = config.checkpoint, config.metrics, config.comm
    profiling, snapshots = config.profiling, config.profiling.save_memory_snapshot_folder
    for key, is_used, name in (
        ("checkpoint.folder", checkpoint.enable, checkpoint.folder),
        ("metrics.save_tb_folder", metrics.enable_tensorboard, metrics.save_tb_folder),
        ("comm.save_traces_folder", comm.trace_buf_size > 0, comm.save_traces_folder),
        ("profiling.save_traces_folder", profiling.enable_profiling, profiling.save_traces_folder),
        ("profiling.save_memory_snapshot_folder", profiling.enable_memory_snapshot, snapshots),
    ):
        if is_used:
            yield key, run / name, name
    if config.job.save_config_file is not None:
        name = config.job.save_config_file
        yield "job.save_config_file", (run / name).parent, name
    if config.training.dataset == "builtin" or config.sft.enable:  # made by run_train.sh
        path = config.training.dataset_path
        yield "training.dataset_path", Path(path), path


def folder_problem(folder: Path) -> str | None:
    """Return why a folder cannot be made, or written into; None if it can."""
    place = folder.absolute()
    while True:
        try:
            place.lstat()
            break
        except (FileNotFoundError, NotADirectoryError):
            place = place.parent
        except OSError as error:  # such as a name that is too long
            return str(error.strerror)
    if not place.is_dir():
        return f"{place} is no folder"
    return None if _can_be_written_into(place) else f"{place} cannot be written into"


def _can_be_written_into(folder: Path) -> bool:
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    if folder.stat().st_mode & stat.S_IWUSR:
        return True
    # Root is told that it may everywhere, in /proc too, where nobody makes a folder: one is tried.
    try:
        os.rmdir(tempfile.mkdtemp(dir=folder))
    except OSError:
        return False
    return True


def _can_be_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False
