"""Evaluation at intervals on GPUs: the copy beside NCCL, in bfloat16, under the Triton kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from whole_runs import ROOT, losses

import titan_motif.device as default_device

# isort: split
from titan_motif.evaluation.loading import dtype_named, load_model
from titan_motif.evaluation.results import values_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SCRIPT = """
import sys
sys.path += ["tests/distributed", "tests/integration"]
from test_evaluation_run import stand_in
from titan_motif import train
with stand_in():
    sys.exit(train.main(sys.argv[1:]))
"""


def train(script: Path, arguments: list[str]) -> None:
    ranks = max(min(torch.cuda.device_count(), 2), 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    subprocess.run(
        [*command, str(ranks), str(script), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        timeout=280,
        check=True,
    )


def test_the_copy_is_the_saved_step(small_corpus: Path, tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    arguments = ["--job.config_file", "tests/plain.toml", "--training.steps", "5"]
    arguments += ["--training.dataset_path", str(small_corpus), "--checkpoint.interval", "2"]
    arguments += ["--training.builtin_vocab_size", "512", "--metrics.log_freq", "1"]
    arguments += ["--checkpoint.keep_latest_k", "0"]
    train(script, [*arguments, "--job.dump_folder", str(tmp_path / "without")])
    arguments += ["--evaluation.enable", "--evaluation.freq", "2", "--evaluation.tasks", "sums"]
    train(script, [*arguments, "--job.dump_folder", str(tmp_path / "run")])
    for n in (2, 4, 5):
        figures = json.loads((tmp_path / "run" / "evaluation" / f"step-{n}.json").read_text())
        device = torch.device(default_device.device_type)
        step = tmp_path / "run" / "checkpoint" / f"step-{n}"
        saved = load_model(step, None, device, dtype_named("auto", device))
        size = sum(float(p.double().abs().sum()) for p in saved.parameters())
        assert list(values_of(figures).values()) == [pytest.approx(size, rel=1e-12)]
    # Atomic sums of kernels differ between two runs, too.
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "without"), rel=1e-3)
