"""Jobs for the tests of checkpoints."""

from pathlib import Path

import pytest
import torch.distributed as dist
from saved_jobs import Job


@pytest.fixture
def job(tmp_path: Path):
    """Make jobs on one folder inside a process group of one rank."""
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    made: list[Job] = []

    def make(**settings) -> Job:
        made.append(Job(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.manager.close()
    dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"
