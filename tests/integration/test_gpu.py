"""Runs on a GPU: bf16 products, float32 parameters, MFU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def train(small_corpus: Path, folder: Path, *more: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1"]
    command += ["-m", "titan_motif.train", "--job.config_file", "train_configs/debug.toml"]
    command += ["--training.dataset_path", str(small_corpus), "--job.dump_folder", str(folder)]
    command += ["--model.hf_assets_path", str(small_corpus / "tokenizer")]
    command += ["--training.builtin_vocab_size", "512", "--validation.enable=false"]
    command += ["--training.steps", "60", *more]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def losses(folder: Path) -> list[float]:
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries]


@pytest.fixture(scope="module")
def float32_losses(small_corpus: Path, tmp_path_factory) -> list[float]:
    folder = tmp_path_factory.mktemp("float32")
    train(small_corpus, folder, "--training.mixed_precision_param", "float32")
    return losses(folder)


@pytest.mark.parametrize("mode", ["eager", "compiled", "recomputed"])
def test_debug_learns_in_bf16(small_corpus: Path, tmp_path: Path, float32_losses, mode: str):
    more = {
        "eager": [],
        "compiled": ["--compile.enable"],
        "recomputed": ["--activation_checkpoint.mode", "full"],
    }[mode]
    output = train(small_corpus, tmp_path, *more)
    assert "products bfloat16, gradients reduced in float32" in output
    if any(name in torch.cuda.get_device_name() for name in ("H100", "H200", "A100")):
        assert re.search(r"step: 60/60 .* mfu: \d+\.\d%", output)
    assert len(float32_losses) == 4  # steps 1, 20, 40, 60
    assert float32_losses[-1] < float32_losses[0] - 1.5
    assert losses(tmp_path) == pytest.approx(float32_losses, rel=0.01)


def test_gpu_begins_with_the_weights_of_the_cpu():
    import titan_motif.device  # noqa: F401

    # isort: split
    from titan_motif.model import FLAVORS, Motif2Model

    models = {}
    for device in ("cpu", "cuda"):
        with torch.device(device):
            models[device] = Motif2Model(FLAVORS["debug"])
        models[device].init_weights()
    state = models["cuda"].state_dict()
    for name, value in models["cpu"].state_dict().items():
        assert torch.equal(value, state[name].cpu()), name
