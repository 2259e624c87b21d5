"""The launcher takes one signal, and then waits for its ranks."""

import signal

import pytest
from torch.distributed.elastic.multiprocessing import SignalException

from titan_motif import launch
from titan_motif.components.stop_request import SIGNALS, StopRequest

TAKEN = (*SIGNALS, signal.SIGQUIT)


@pytest.fixture
def restored():
    before = {each: signal.getsignal(each) for each in TAKEN}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.usefixtures("restored")
def test_the_first_signal_ends_torchrun_and_others_are_ignored(monkeypatch, tmp_path):
    def run(arguments) -> None:  # as torchrun: its handler is set when it starts the ranks
        signal.signal(signal.SIGUSR1, launch.api._terminate_process_handler)
        try:
            signal.raise_signal(signal.SIGUSR1)
        except SignalException:
            for each in TAKEN:
                signal.raise_signal(each)
            launch.Path(launch.os.environ[launch.MARK]).touch()
            raise

    monkeypatch.setenv(launch.MARK, "")  # is put back
    monkeypatch.setattr(launch.run, "run", run)
    assert launch.main(["-m", "titan_motif.train"]) == launch.EXIT_PREEMPTED


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["plain", "nohup"])
def test_a_lost_terminal_ends_a_run_unless_nohup_keeps_it(monkeypatch, handler):
    told = []
    monkeypatch.setenv(launch.MARK, "")
    monkeypatch.setattr(launch.run, "run", told.append)
    signal.signal(signal.SIGHUP, handler)
    assert launch.main(["-m", "titan_motif.train"]) == 0
    is_taken = "SIGHUP" in told[0].signals_to_handle.split(",")
    StopRequest().install()
    is_taken_by_ranks = signal.getsignal(signal.SIGHUP) != handler
    assert is_taken == is_taken_by_ranks == (handler == signal.SIG_DFL)
