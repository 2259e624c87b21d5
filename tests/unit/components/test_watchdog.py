"""The watchdog: what it says of a rank that stands still, and that it ends the process."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from titan_motif.components.watchdog import EXIT_CODE, Watchdog

TIMEOUT = 20.0


class Rank:
    """A watchdog whose end is noted in place of ending this process."""

    def __init__(self, folder: Path, rank: int = 0, store=None, world_size: int = 1):
        self.said: list[str] = []
        self.silent: list[int] = []
        self.ended = threading.Event()
        self.code = None
        self.watchdog = Watchdog(rank, world_size, folder, 0.4, self._tell, store, end=self._end)

    def _tell(self, sentence: str, silent) -> None:
        self.said.append(sentence)
        self.silent += silent

    def _end(self, code: int) -> None:
        self.code = code
        self.ended.set()


@pytest.fixture
def store():
    return dist.HashStore()


def test_a_phase_that_takes_too_long_is_told_with_its_stack(tmp_path):
    one = Rank(tmp_path)
    one.watchdog.start()
    for _ in range(3):
        one.watchdog.enter("step 7: forward and backward")
        time.sleep(0.2)
    assert not one.said
    one.watchdog.enter("step 8: reading data")
    assert one.ended.wait(TIMEOUT)
    assert one.code == EXIT_CODE
    (told,) = one.said
    assert told.startswith("rank 0 made no progress for 0.4 s, since ")
    assert ": step 8: reading data; stacks of all threads: " in told
    assert "test_a_phase_that_takes_too_long" in (tmp_path / "rank_0.txt").read_text()
    one.watchdog.stop()


def test_a_slow_phase_has_its_own_limit_and_nothing_is_left(tmp_path):
    one = Rank(tmp_path / "stalls")
    one.watchdog.start()
    one.watchdog.enter("saving step 3", seconds=TIMEOUT)
    time.sleep(0.8)
    one.watchdog.stop()
    assert not one.said
    assert not (tmp_path / "stalls").exists()


def test_all_ranks_name_the_one_that_is_waited_for(tmp_path, store):
    """Rank 1 reads while ranks 0 and 2 have gone on to a collective."""
    ranks = [Rank(tmp_path, rank, store, 3) for rank in range(3)]
    for each in ranks:
        each.watchdog.start()
        each.watchdog.enter("step 5: reading data")
    for each in (ranks[0], ranks[2]):
        each.watchdog.enter("step 5: forward and backward")
    for each in ranks:
        assert each.ended.wait(TIMEOUT)
        (told,) = each.said
        assert told.startswith("rank 1 made no progress for 0.4 s, since ")
        assert ": step 5: reading data; the others wait for it; stacks" in told
        each.watchdog.stop()


def test_a_rank_that_tells_nothing_any_more_is_named(tmp_path, store):
    """Rank 1 told what it did once, rank 2 never."""
    rank, gone = Rank(tmp_path, 0, store, 3), Rank(tmp_path, 1, store, 3)
    gone.watchdog.enter("step 9: the optimizer's step")
    gone.watchdog._publish(gone.watchdog._phase.beat)
    rank.watchdog.start()
    assert rank.ended.wait(TIMEOUT)
    (told,) = rank.said
    assert told.startswith(
        "nothing is heard of ranks 1, 2: stopped, or its machine is gone; the last that was told: "
        "step 9: the optimizer's step; stacks"
    )
    assert rank.silent == [1, 2]
    rank.watchdog.stop()


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_process_that_stands_still_is_named_however_long_the_others_may_wait(
    tmp_path, store, frozen
):
    """They wait for it to save, say; a rank that is busy for as long is left alone."""
    other, busy = Rank(tmp_path, 1 - frozen, store, 3), Rank(tmp_path, 2, store, 3)
    gone = Rank(tmp_path, frozen, store, 3)
    gone.watchdog.enter("after step 6: what is due")
    gone.watchdog._publish(gone.watchdog._phase.beat)
    busy.watchdog.start()
    busy.watchdog.enter("saving step 6", seconds=TIMEOUT)
    other.watchdog.start()
    other.watchdog.enter("waiting for the others", seconds=TIMEOUT)
    begin = time.monotonic()
    assert other.ended.wait(TIMEOUT)
    assert time.monotonic() - begin < TIMEOUT / 2
    (told,) = other.said
    assert told.startswith(
        f"nothing is heard of rank {frozen}: stopped, or its machine is gone; the last that was "
        "told: after step 6: what is due; stacks"
    )
    assert other.silent == [frozen]
    busy.watchdog.stop()
    other.watchdog.stop()


def test_a_process_that_goes_on_meanwhile_is_not_missed(tmp_path, store):
    """All of a machine's were stopped for a while."""
    rank, other = Rank(tmp_path, 0, store, 2), Rank(tmp_path, 1, store, 2)
    other.watchdog.start()
    other.watchdog.enter("saving step 6", seconds=TIMEOUT)
    rank.watchdog._end_process(rank.watchdog._phase, {1})
    other.watchdog.stop()
    assert not rank.said


def test_a_rank_that_is_done_is_not_missed(tmp_path, store):
    rank, done = Rank(tmp_path, 0, store, 2), Rank(tmp_path, 1, store, 2)
    done.watchdog.start()
    done.watchdog.stop()
    rank.watchdog.start()
    rank.watchdog.enter("summary")
    assert rank.ended.wait(TIMEOUT)
    (told,) = rank.said
    assert told.startswith("rank 0 made no progress for 0.4 s, since ")
    rank.watchdog.stop()


def test_a_rank_that_goes_on_meanwhile_is_left_alone(tmp_path, store):
    """It was slow, and enters another phase while the others are asked."""
    rank = Rank(tmp_path, 0, store, 1)
    rank.watchdog.start()
    rank.watchdog.enter("saving step 3")
    time.sleep(0.5)  # the limit is over, and looking around takes 0.25 s
    rank.watchdog.enter("step 4: reading data", seconds=TIMEOUT)
    time.sleep(0.6)
    rank.watchdog.stop()
    assert not rank.said


def test_stacks_of_an_earlier_start_stay(tmp_path):
    (tmp_path / "rank_0.txt").write_text("stacks\n")
    one = Rank(tmp_path)
    one.watchdog.start()
    one.watchdog.stop()
    assert (tmp_path / "rank_0.txt").read_text() == "stacks\n"


def test_a_process_whose_interpreter_is_held_is_ended_all_the_same(tmp_path):
    """A thread of Python's could not run there; one of C does."""
    script = (
        "import ctypes, pathlib, sys\n"
        "from titan_motif.components import watchdog\n"
        "watchdog.GRACE_SECONDS = 0.5\n"
        "dog = watchdog.Watchdog(0, 1, pathlib.Path(sys.argv[1]), 0.4, print)\n"
        "dog.start()\n"
        "ctypes.PyDLL(None).sleep(60)\n"  # holds the interpreter's lock
    )
    begin = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], timeout=50, capture_output=True
    )
    assert process.returncode == 1
    assert time.monotonic() - begin < 40
    assert 'File "<string>", line 6' in (tmp_path / "rank_0.txt").read_text()


def test_a_process_that_stands_still_exits(tmp_path):
    script = (
        "import pathlib, sys, time\n"
        "from titan_motif.components.watchdog import Watchdog\n"
        "dog = Watchdog(0, 1, pathlib.Path(sys.argv[1]), 0.4, print)\n"
        "dog.start()\n"
        "dog.enter('step 1: reading data')\n"
        "print('sleeps', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.run(
        [sys.executable, "-u", "-c", script, str(tmp_path)], timeout=50, capture_output=True
    )
    assert process.returncode == 1
    assert b"rank 0 made no progress for 0.4 s" in process.stdout
