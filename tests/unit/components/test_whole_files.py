"""Files that are never seen half written, and folders that one process writes at a time."""

import subprocess
import sys

import pytest

from titan_motif.components.whole_files import alone_in


def test_a_folder_is_one_process_alone(tmp_path):
    """A process waits until another one has left it."""
    script = (
        "import sys, pathlib; from titan_motif.components.whole_files import alone_in\n"
        "print('there', flush=True)\n"
        "with alone_in(pathlib.Path(sys.argv[1])): print('in', flush=True)"
    )
    with alone_in(tmp_path):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "there\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    assert process.communicate(timeout=60)[0] == "in\n"
