"""A folder that appears when it is whole: written beside itself and moved into place."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import tyro

from titan_motif.components.foreign_files import inside
from titan_motif.components.preparation.work_folder import locked

From = Annotated[Path, tyro.conf.arg(name="from")]
"""The type of an option --from, which is no name in Python."""


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""What transformers reads of a tokenizer."""


def copy_files(source: Path, to: Path, names: Iterable[str]) -> None:
    """Copy those files that are there.

    Raises: ValueError, one line, if one is a link out of the folder
    """
    for name in names:
        if (source / name).is_file():
            try:
                shutil.copyfile(inside(source, name), to / name)
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from None


@contextmanager
def made(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Yield a folder to write into, and move it to `folder` at the end; remove it on an error.

    The work lies in FOLDER.writing, which no other process can use meanwhile; what a killed one has
    left there is removed.

    Raises: ValueError if something is there already, if another process or something else is where
            the work is to be, or if the disk has not the room
    """
    _check_is_free(folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.absolute().parent).free
    if num_bytes > free:
        raise ValueError(
            f"{folder}: {num_bytes / 1e9:.2f} GB are needed, and {free / 1e9:.2f} GB are left"
        )
    work = folder.with_name(f"{folder.name}.writing")
    with locked(work):
        try:
            _check_is_free(folder)  # whoever was at work before may have come to its end
            new = work / "new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            yield new
            if folder.exists():
                folder.rmdir()
            new.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _check_is_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: holds something, which is not replaced; name another folder")
