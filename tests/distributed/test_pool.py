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


class SlowToFind(torch.distributed.Store):
    """A store in which rank 1 learns where rank 2 is a second after all others."""

    def __init__(self, store_type, *arguments):
        super().__init__()
        self.store = store_type(*arguments)

    def set(self, key, value):
        self.store.set(key, value)

    def get(self, key):
        return self.store.get(key)

    def add(self, key, value):
        return self.store.add(key, value)

    def wait(self, keys, *timeout):
        if os.environ["RANK"] == "1" and keys[-1].endswith("/2"):
            time.sleep(1)
        self.store.wait(keys, *timeout)


def meet_slowly():
    torch.distributed.FileStore = functools.partial(SlowToFind, torch.distributed.FileStore)


def meet_as_before():
    torch.distributed.FileStore = torch.distributed.FileStore.args[0]


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


def test_no_rank_leaves_while_others_still_connect(rank_pool):
    rank_pool.run(meet_slowly, 3)
    assert rank_pool.run(world_size, 3) == [3] * 3
    rank_pool.run(meet_as_before, 3)


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
