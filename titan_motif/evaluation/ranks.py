"""The ranks of an evaluation: whole models side by side, each with a share of the requests."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes that torchrun has started, or this one alone.

    Only counts and results are exchanged, so gloo serves every device.

    Args: timeout: the longest wait for another rank. In training, where there is a process group
                   already, it gets one of gloo's beside it
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else 0
        self._began_here = False
        self._group: dist.ProcessGroup | None = None
        if self.size == 1:
            return
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timeout)
            self._began_here = True
        elif timeout is not None:
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        if self._began_here:
            dist.destroy_process_group()

    def device(self, wanted: str) -> str:
        """Return this rank's device: of `cuda`, one for each process of the host."""
        if self.size > 1 and wanted not in ("cpu", "meta") and ":" not in wanted:
            return f"{wanted}:{self.local_rank}"
        return wanted

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return every rank's tensor, one after another along the first dimension, on the CPU.

        A number of no dimension counts as a row of one.
        """
        tensor = torch.atleast_1d(tensor.cpu())
        if self.size == 1:
            return tensor
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor, group=self._group)
        return torch.cat(found)

    def gather_object(self, thing: Any, to_rank: int = 0) -> list[Any] | None:
        """Return every rank's object on one rank, None on the others."""
        if self.size == 1:
            return [thing]
        found = [None] * self.size if self.rank == to_rank else None
        dist.gather_object(thing, found, dst=to_rank, group=self._group)
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier(group=self._group)
