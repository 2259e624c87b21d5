"""One process as a rank of a job of any size, for plans and benchmarks: no other rank exists."""

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextlib.contextmanager
def simulated_ranks(world_size: int, rank: int = 0) -> Iterator[None]:
    """Be a rank of a process group that sends nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
