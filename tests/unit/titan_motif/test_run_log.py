"""What is told of a disk that is full where TensorBoard writes."""

import errno
import logging
import threading
from types import SimpleNamespace

import pytest
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from titan_motif import run_log, train

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("error", "is_raised"), [(FULL, False), (OSError(errno.EIO, "x"), True)])
def test_closing_has_no_room_and_the_watchdog_ends_all_the_same(error, is_raised, caplog):
    closed = []

    def fail() -> None:
        raise error

    trainer = SimpleNamespace(
        close=fail, control=SimpleNamespace(close=lambda: closed.append(True))
    )
    if is_raised:
        with pytest.raises(OSError, match="x"):
            train._close(trainer)
    else:
        with caplog.at_level(logging.WARNING):
            train._close(trainer)
        assert "the last lines for TensorBoard are not written: No space left" in caplog.text
    assert closed == [True]


@pytest.mark.parametrize(("error", "is_told"), [(FULL, False), (OSError(errno.EIO, "x"), True)])
def test_the_stack_of_tensorboards_thread_is_not_shown(
    error, is_told, tmp_path, monkeypatch, capsys
):
    """Its writer raises the error in the main thread, too."""
    monkeypatch.setattr(threading, "excepthook", run_log._tell_of_thread)
    writer = EventFileWriter(str(tmp_path))

    def fail(data: bytes) -> None:
        raise error

    monkeypatch.setattr(writer._async_writer._writer, "write", fail)
    writer._async_writer._byte_queue.put(b"line")
    writer._async_writer._worker.join(20)
    with pytest.raises(OSError, match=error.strerror):
        writer.flush()
    assert ("Traceback" in capsys.readouterr().err) == is_told
