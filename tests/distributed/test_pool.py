"""The pool of ranks itself."""

import functools
import os
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


def die():
    os._exit(7)


def join_slowly():
    """From now on rank 1 takes half a second longer than the others to join a group."""
    join = torch.distributed.init_process_group

    def join_and_sleep(*arguments, rank, **keywords):
        join(*arguments, rank=rank, **keywords)
        time.sleep(0.5 * (rank == 1))

    torch.distributed.init_process_group = functools.wraps(join)(join_and_sleep)


def join_as_before():
    torch.distributed.init_process_group = torch.distributed.init_process_group.__wrapped__


def now() -> float:
    return time.monotonic()


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


def test_no_rank_begins_or_leaves_before_all_have_joined(rank_pool):
    rank_pool.run(join_slowly, 3)
    begun = rank_pool.run(now, 3)
    rank_pool.run(join_as_before, 3)
    assert max(begun) - min(begun) < 0.4


@pytest.fixture
def small_pool(tmp_path, monkeypatch):
    from pool import RankPool

    monkeypatch.setattr("pool.NUM_WORKERS", 1)
    pool = RankPool(tmp_path)
    yield pool
    pool.close()


def test_a_dead_worker_is_named_and_the_pool_starts_anew(small_pool):
    with pytest.raises(AssertionError, match=r"^rank 0:\nits process ended with exit code 7$"):
        small_pool.run(die, 1)
    assert small_pool.run(world_size, 1) == [1]
    ((process, _),) = small_pool.workers
    process.kill()  # between two calls
    process.wait()
    assert small_pool.run(world_size, 1) == [1]


def test_workers_that_do_not_start_are_not_waited_for(small_pool, monkeypatch):
    monkeypatch.setattr("pool.START_SECONDS", 0.1)
    with pytest.raises(TimeoutError, match=r"start of the pool: ranks \[0\] did not answer in 0.1"):
        small_pool.run(world_size, 1)
    assert small_pool.workers == []
