"""The pool of ranks itself."""

import time

import pytest
import torch


def fail_on_one_rank():
    if torch.distributed.get_rank() == 1:
        raise RuntimeError("this rank fails")
    torch.distributed.barrier()


def sleep_on_one_rank():
    if torch.distributed.get_rank() == 1:
        time.sleep(60)


def world_size() -> int:
    return torch.distributed.get_world_size()


@pytest.mark.slow  # starts the pool twice more
def test_the_pool_reports_a_failing_rank_and_starts_anew(rank_pool):
    with pytest.raises(AssertionError, match="this rank fails"):
        rank_pool.run(fail_on_one_rank, 2)
    with pytest.raises(TimeoutError, match=r"ranks \[1\] did not answer in 3 s"):
        rank_pool.run(sleep_on_one_rank, 2, seconds=3)
    assert rank_pool.run(world_size, 4) == [4, 4, 4, 4]


def test_one_group_after_another(rank_pool):
    assert [rank_pool.run(world_size, n) for n in (3, 1, 2)] == [[3] * 3, [1], [2] * 2]
