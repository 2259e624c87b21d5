"""What the documentation has to keep up with."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif.config_loading import load_config, read_files

ROOT = Path(__file__).resolve().parents[3]


def documented_starts() -> list[str]:
    """Every command line with run_train.sh in a code block of the README and of docs/."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [" ".join(x.split()) for x in lines if re.match(r"(\w+=\S* )*./run_train", x)]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("line", documented_starts())
def test_every_documented_start_is_of_a_job_that_can_run(line: str, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    launcher = words.index("./run_train.sh")
    variables = dict(word.split("=", 1) for word in words[:launcher])
    file = variables.get("CONFIG_FILE", "train_configs/debug.toml")
    arguments = ["--job.config_file", file, *words[launcher + 1 :]]
    if "debug" not in file and "builtin" not in arguments:  # data that a reader brings along
        (_, table), *_ = read_files(ROOT / file)
        sources = table.get("curriculum", {}).get("sources")
        for folder in [source["path"] for source in sources or ({"path": "."},)]:
            for split in ("train", "validation"):
                (tmp_path / folder / split).mkdir(parents=True)
                np.save(tmp_path / folder / split / "tokens.npy", np.zeros(16_385, np.uint32))
        (tmp_path / "tokenizer.json").touch()
        arguments += ["--training.dataset_path", str(tmp_path)]
        arguments += ["--model.hf_assets_path", str(tmp_path)]
    if "12_7b" in file:  # in FP8, on GPUs
        monkeypatch.setattr("titan_motif.config_float8.float8_problem", lambda: None)
        arguments += ["--training.mixed_precision_param", "bfloat16"]
    # Where the line does not say how many: what a machine may have.
    for processes in (variables["NGPU"],) if "NGPU" in variables else (1, 2, 4, 8):
        world_size = int(processes) * int(variables.get("NNODES", 1))
        # Conversations that a reader brings along are packed as a job starts.
        load_config(arguments, world_size, runs_here="/sft_" not in file)


def test_documented_starts_are_found():
    starts = documented_starts()
    assert len(starts) > 10
    assert {start.split(" ./run_train.sh")[0] for start in starts} >= {"NGPU=4", "NGPU=8"}


def test_every_assumption_is_listed():
    marked = {
        str(path.relative_to(ROOT))
        for folder in ("titan_motif", "components", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if "ASSUMPTION:" in path.read_text()
    }
    listed = set(re.findall(r"^\| `([^`]+)`", (ROOT / "docs/assumptions.md").read_text(), re.M))
    assert marked == listed


def test_a_top_level_kernels_folder_hides_no_package():
    # Run as a user would, with the repository's root first on the path: see kernels/__init__.py.
    code = "from transformers.utils import import_utils; import_utils.is_kernels_available()"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
