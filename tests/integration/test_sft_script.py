"""run_sft.sh: what it needs, and that a model that is fine-tuned in three stages learns to add."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable, "NGPU": "2"} | variables
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_a_checkpoint_to_begin_from_nothing_is_done(tmp_path: Path):
    base = tmp_path / "nowhere"
    finished = run(ROOT / "run_sft.sh", BASE=str(base))
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    told = "no such folder; ./run_train.sh makes outputs/debug/checkpoint, BASE names another"
    assert line == f"error: {base}: {told}"


@pytest.mark.slow  # ten minutes: a checkout of its own, with its own environment
@pytest.mark.timeout(3000)
def test_sums_are_learnt_in_the_first_stage_and_kept_in_the_others(tmp_path: Path):
    tree = tmp_path / "tree"
    made_by_runs = {str(ROOT / name) for name in ("outputs", "data")}
    shutil.copytree(
        ROOT,
        tree,
        symlinks=True,
        ignore=lambda folder, names: [
            name for name in names if name[0] == "." or f"{folder}/{name}" in made_by_runs
        ],
    )
    trained = run(tree / "run_train.sh")
    assert trained.returncode == 0, trained.stderr
    tuned = run(tree / "run_sft.sh")
    assert tuned.returncode == 0, tuned.stderr
    found = re.findall(r"held-out sums: .* \((\d+) of (\d+)\)", tuned.stdout)
    assert {int(asked) for _, asked in found} == {200}
    base, *stages = (int(right) / 200 for right, _ in found)
    error = [(share * (1 - share) / 200) ** 0.5 for share in (base, *stages)]
    assert len(stages) == 3
    assert stages[0] > base + 2 * max(error[:2])
    assert stages[1] >= stages[0] - 2 * error[1]
    assert stages[2] >= stages[1] - 2 * error[2]
