"""run_train.sh from another directory: its exit codes, what it says, which Python it takes."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from titan_motif.launch import EXIT_PREEMPTED

ROOT = Path(__file__).resolve().parents[2]


def run_train(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable, "NGPU": "2"} | variables
    command = ["bash", str(ROOT / "run_train.sh"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path):
    finished = run_train(tmp_path, "--training.steps", "0")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.splitlines() == [
        "error: command line: training.steps is 0; at least 1 is needed"
    ]


def test_its_help_tells_the_exit_codes_and_where_the_settings_stand():
    finished = run_train(ROOT, "--help")
    assert finished.returncode == 0
    words = " ".join(finished.stdout.split())
    assert f" {EXIT_PREEMPTED} if the run was stopped by a signal and has saved" in words
    assert "Exit code: 0; 1 if a rank has failed" in words
    assert "; 2 if the config is wrong, or its data; 75" in words
    assert "; 128 + the signal if it has not." in words
    assert "Every setting, with its default: docs/reference.md." in words


def test_a_wrong_variable_is_refused(tmp_path: Path):
    finished = run_train(tmp_path, NGPU="two")
    assert finished.returncode == 1
    assert finished.stderr.splitlines() == ["error: NGPU is 'two'; a positive number is needed"]


def test_a_rank_that_does_not_exist_cannot_be_shown(tmp_path: Path):
    for shown in ("3", "0,2", "first", ","):
        finished = run_train(tmp_path, LOG_RANK=shown)
        assert finished.returncode == 1
        assert finished.stderr.splitlines() == [
            f"error: LOG_RANK is '{shown}'; local ranks from 0 to 1 are needed"
        ]


def test_a_folder_of_ones_own_is_not_replaced_by_the_corpus(tmp_path: Path):
    (tmp_path / "mydata").mkdir()
    (tmp_path / "mydata" / "tokens.npy").write_bytes(b"precious")
    finished = run_train(tmp_path, "--training.dataset-path", "mydata", PREPARE_ONLY="1")
    assert finished.returncode == 2
    assert f"error: {tmp_path}/mydata: holds something other than" in finished.stderr
    assert (tmp_path / "mydata" / "tokens.npy").read_bytes() == b"precious"


def test_it_trains_from_another_directory_and_goes_on_there(tmp_path: Path, small_corpus: Path):
    (tmp_path / "tiny.toml").write_text(
        f"""
        [job]
        dump_folder = "outputs/from_the_file"
        [model]
        hf_assets_path = "{small_corpus}/tokenizer"
        [model.args]
        n_layers = 1
        [training]
        dataset = "prepared"
        dataset_path = "{small_corpus}/english"
        seq_len = 16
        local_batch_size = 1
        steps = 2
        [lr_scheduler]
        warmup_steps = 1
        [checkpoint]
        enable = true
        [summary]
        sample_tokens = 0
        """
    )
    finished = run_train(
        tmp_path, "--job.dump-folder", "run", "--metrics.log_freq=1", CONFIG_FILE="tiny.toml"
    )
    assert finished.returncode == 0, finished.stderr
    assert "step: 2/2" in finished.stdout + finished.stderr
    assert (tmp_path / "run" / "summary.json").is_file()

    # what only the ranks can find: one line, who has failed, and no launcher's stack
    failed = run_train(
        tmp_path, "--job.dump_folder", "run", "--checkpoint.load_step=7", CONFIG_FILE="tiny.toml"
    )
    assert failed.returncode == 1
    line = f"{tmp_path}/run/checkpoint: step-7 does not exist; complete steps: 2"
    assert f"error: {line}" in failed.stderr.splitlines()
    assert "Root Cause" in failed.stderr
    assert "Traceback" not in failed.stderr


def from_setup_env(script: str, *arguments: str) -> str:
    """Return what a script prints that has sourced setup_env.sh."""
    words = ["bash", "-c", f'set -euo pipefail; source "{ROOT}/setup_env.sh"; {script}', "bash"]
    return subprocess.run(
        [*words, *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_a_python_is_asked_for_all_that_the_project_depends_on():
    """Where one is left out, a run on a Python without it fails at an import instead."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[\w-]+", wanted)[0] for wanted in project["dependencies"]]
    modules = {name.replace("-", "_") for name in (project["name"], *names)}
    assert set(from_setup_env('echo "$train_modules"').split()) == modules


def test_a_python_without_one_of_them_is_not_taken():
    script = """train_modules+=" no_such_module"; _problem "$1" "" """
    assert from_setup_env(script, sys.executable) == "lacks no_such_module\n"
