"""What is told of a disk that is full where TensorBoard writes."""

import errno
import threading

import pytest
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from titan_motif import run_log

FULL = OSError(errno.ENOSPC, "No space left on device")


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
