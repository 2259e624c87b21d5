"""What is closed at the end of a run, whatever fails there."""

import errno
import multiprocessing
import time
from unittest.mock import Mock

import pytest

from titan_motif.components.checkpoint import CheckpointError
from titan_motif.train import _close


@pytest.mark.parametrize(
    ("of_checkpointer", "of_metrics"),
    [
        (None, None),
        (CheckpointError("step 3 was not saved"), None),
        (None, OSError(errno.ENOSPC, "No space left on device")),
        (CheckpointError("step 3 was not saved"), OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_all_of_it_is_closed(caplog, of_checkpointer, of_metrics):
    trainer = Mock()
    trainer.checkpointer.close.side_effect = of_checkpointer
    trainer.metrics_processor.close.side_effect = of_metrics
    _close(trainer)
    trainer.metrics_processor.close.assert_called_once_with()
    trainer.control.close.assert_called_once_with()
    assert ("step 3 was not saved" in caplog.text) == (of_checkpointer is not None)
    told = "the last lines for TensorBoard are not written: No space left on device"
    assert (told in caplog.text) == (of_metrics is not None)


def test_another_error_is_raised_when_all_is_closed():
    trainer = Mock()
    trainer.metrics_processor.close.side_effect = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        _close(trainer)
    trainer.control.close.assert_called_once_with()


def test_a_worker_that_hangs_is_ended():
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    worker.start()
    _close(Mock())
    worker.join(10)
    assert worker.exitcode == -9
