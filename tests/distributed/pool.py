"""Four worker processes for the whole test run: starting ranks for each test would cost 10 s each.

`pool.run(function, world_size, *arguments)` calls a function of a test module on the first
`world_size` workers, inside a gloo process group of that size, and returns each rank's result. The
process group meets in a file, so no port is taken. A worker that raises, dies, or does not answer
in time fails the test with its traceback or exit code; the pool then starts anew.
"""

import importlib.util
import inspect
import logging
import os
import pickle
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

NUM_WORKERS = 4
START_SECONDS = 120


class RankPool:
    """See the module's text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_calls = 0
        self.workers: list[tuple[subprocess.Popen, Connection]] = []

    def run(
        self,
        function: Callable[..., Any],
        world_size: int,
        *arguments: Any,
        seconds: float = 90,
        **keywords: Any,
    ) -> list[Any]:
        """Return the function's results, rank 0's first."""
        if not 1 <= world_size <= NUM_WORKERS:
            raise ValueError(f"world_size is {world_size}; 1 to {NUM_WORKERS} is allowed")
        if any(process.poll() is not None for process, _ in self.workers):
            self.close()
        if not self.workers:
            self._start()
        self.num_calls += 1
        meeting = self.folder / f"store-{self.num_calls}"
        where = inspect.getsourcefile(function), function.__name__
        connections = [connection for _, connection in self.workers[:world_size]]
        for rank, connection in enumerate(connections):
            connection.send((*where, arguments, keywords, rank, world_size, str(meeting)))
        return self._collect(connections, function.__name__, seconds)

    def _collect(self, connections: list[Connection], name: str, seconds: float) -> list[Any]:
        results: dict[Connection, Any] = {}
        failures: list[str] = []
        deadline = monotonic() + seconds
        while len(results) < len(connections):
            waiting = [c for c in connections if c not in results]
            ready = wait(waiting, timeout=max(deadline - monotonic(), 0))
            if not ready and failures:
                break
            if not ready:
                silent = [connections.index(c) for c in waiting]
                self.close()
                raise TimeoutError(f"{name}: ranks {silent} did not answer in {seconds} s")
            for connection in ready:
                failed, results[connection] = self._receive(connection)
                if failed:
                    failures.append(f"rank {connections.index(connection)}:\n{results[connection]}")
                    # Others may hang in a collective, or fail at once because this one has gone.
                    deadline = min(deadline, monotonic() + 2)
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        return [results[c] for c in connections]

    def _receive(self, connection: Connection) -> tuple[bool, Any]:
        """Return (whether it failed, its result or what to tell) of a worker that has something."""
        try:
            return connection.recv()
        except (EOFError, ConnectionError):
            (process,) = [p for p, c in self.workers if c is connection]
            return True, f"its process ended with exit code {process.wait()}"

    def _start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        for _ in range(NUM_WORKERS):
            ours, theirs = Pipe()
            number = theirs.fileno()
            command = [sys.executable, str(Path(__file__).resolve()), str(number)]
            process = subprocess.Popen(command, env=environment, pass_fds=[number])
            theirs.close()
            self.workers.append((process, ours))
        connections = [connection for _, connection in self.workers]
        self._collect(connections, "the start of the pool", START_SECONDS)

    def close(self) -> None:
        for process, connection in self.workers:
            connection.close()
            process.kill()
            process.wait()
        self.workers = []


def _load(path: str, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"ranks_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def _serve(connection: Connection) -> None:
    import titan_motif.device  # noqa: F401  (before anything of torchtitan)

    # isort: split
    import torch
    import torch.distributed as dist

    sys.path.append(str(Path(__file__).parent))  # where test modules find `layouts`
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    connection.send((False, "ready"))
    while True:
        try:
            path, name, arguments, keywords, rank, world_size, meeting = connection.recv()
        except EOFError:
            return
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
        }
        try:
            store = dist.FileStore(meeting, world_size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
            try:
                # A rank that leaves while others still connect to each other breaks their start.
                dist.barrier()
                answer = pickle.dumps((False, _load(path, name)(*arguments, **keywords)))
            finally:
                dist.destroy_process_group()
        except BaseException:
            answer = pickle.dumps((True, traceback.format_exc()))
        connection.send_bytes(answer)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
