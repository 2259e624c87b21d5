"""What is written of a run that was stopped."""

import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif.run_control import MARK, RunControl


def test_a_launcher_that_has_gone_is_no_failure(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(MARK, str(tmp_path / "gone" / "preempted"))
    stop = SimpleNamespace(received_at=time.time() - 3)
    control = SimpleNamespace(is_first_rank=True, folder=tmp_path, stop=stop)
    RunControl.leave_mark(control, 6, signal.SIGTERM)
    told = json.loads((tmp_path / "preempted.json").read_text())
    assert (told["step"], told["signal"]) == (6, "SIGTERM")
    assert 3 <= told["seconds"] < 30
