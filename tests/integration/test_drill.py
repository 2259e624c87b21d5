"""The drill's quick form: a few cases of each fault, in real small runs."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.timeout(400)
def test_the_quick_drill_holds(tmp_path):
    command = [sys.executable, "-m", "titan_motif.cli", "drill", "--quick"]
    environment = os.environ | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"^([\w-]+): (\d+) of (\d+) held$", done.stdout, re.MULTILINE)
    assert {name for name, *_ in counts} >= {"kills", "mutations", "numbers", "stops", "configs"}
    assert all(int(held) == int(of) > 0 for _, held, of in counts)
    assert list(tmp_path.iterdir()) == []
