"""A process that is asked one thing after another, and may die or hang of it."""

import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from titan_motif.drill.runs import forking


class Servant:
    """A forked process with a process group of one rank.

    Args:
        prepare: a function of a module; in the process, it returns what answers
        given:   its arguments
    """

    def __init__(self, prepare: Callable[..., Callable[..., Any]], given: tuple[Any, ...]) -> None:
        context = forking()
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, given), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, *arguments: Any, seconds: float) -> Any:
        """Return an answer; RuntimeError, one line, if it raises, dies, or is not there in time."""
        try:
            self._ours.send(arguments)
            if not self._ours.poll(seconds):
                raise RuntimeError(f"no answer in {seconds} s")
            failure, answer = self._ours.recv()
        except (EOFError, ConnectionError):
            self._process.join(seconds)
            raise RuntimeError(f"the process ended with code {self._process.exitcode}") from None
        if failure is not None:
            raise RuntimeError(failure)
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._ours.close()


def _serve(
    connection: Connection, prepare: Callable[..., Callable[..., Any]], given: tuple[Any, ...]
) -> None:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        answer: Callable[..., Any] | None = None
        while True:
            try:
                arguments = connection.recv()
            except EOFError:
                return
            try:
                answer = answer or prepare(*given)
                connection.send((None, answer(*arguments)))
            except Exception as error:
                *_, last = traceback.extract_tb(error.__traceback__)
                where = f"{Path(last.filename).name}:{last.lineno}"
                told = str(error).partition("\n")[0]
                connection.send((f"{type(error).__name__} at {where}: {told}", None))
