"""torchrun as a run wants it: `python -m titan_motif.launch TORCHRUN_ARGUMENTS`.

Where a rank has failed, torchrun says which one and why, and then shows the stack of the launcher,
which tells a reader nothing. It returns 1 whatever the ranks returned, and forwards SIGUSR1, which
schedulers send before a job's time is over, only if it is told to. A second signal lets it leave
while the ranks still save: the first one is answered, others are ignored.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn
from unittest import mock

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException, api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from titan_motif.components.stop_request import SIGNALS, taken_signals

EXIT_PREEMPTED = os.EX_TEMPFAIL
MARK = "TITAN_MOTIF_PREEMPTION_MARK"
"""Environment variable: the file by which ranks say that they have saved and left
(titan_motif.run_control, which this module does not import: it need not wait for torchtitan)."""


def main(argv: Sequence[str]) -> int:
    """Start the ranks, wait for them, and return the exit code.

    0; 1 if a rank has failed; 75 if the run was stopped by a signal and has saved; 128 + the signal
    if it has not.
    """
    # At SIGQUIT ranks end without a save.
    handled = ",".join(each.name for each in (*taken_signals(), signal.SIGQUIT))
    with tempfile.TemporaryDirectory(prefix="titan-motif-") as folder:
        mark = Path(folder) / "preempted"
        os.environ[MARK] = str(mark)
        try:
            with mock.patch.object(api, "_terminate_process_handler", _take_first_signal):
                run.run(run.parse_args(["--signals-to-handle", handled, *argv]))
        except ChildFailedError as error:
            if mark.exists():
                return EXIT_PREEMPTED
            print(error.format_msg(), file=sys.stderr)
            return 1
        except SignalException as error:
            return EXIT_PREEMPTED if mark.exists() else 128 + error.sigval
    return 0


def _take_first_signal(number: int, frame: FrameType | None) -> NoReturn:
    """End torchrun once: it then waits for the ranks, and kills those that take too long."""
    for each in (*SIGNALS, signal.SIGQUIT):
        signal.signal(each, signal.SIG_IGN)
    raise SignalException(f"Process {os.getpid()} got signal: {number}", signal.Signals(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
