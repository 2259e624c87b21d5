"""Runs on a GPU: bf16 products, float32 parameters, MFU, memory."""

import gc
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def train(small_corpus: Path, folder: Path, *more: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
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


@pytest.fixture
def one_rank(tmp_path: Path):
    """A process group of this process alone."""
    import titan_motif.device

    backend = {"cuda": "nccl", "cpu": "gloo"}[titan_motif.device.device_type]
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def peak_bytes_of_a_step(recompute: str, seq_len: int = 4096, **arguments) -> int:
    """The most that is allocated in a step of four 12.7B blocks on one sequence.

    It is the second step, and adds to the first one's gradients, so that what is kept for the
    backward pass is what tells the modes apart. Four, since a block's backward pass may hold more
    than the one before it, whose gradients are still being reduced: what the blocks under both have
    kept then counts.
    """
    from torchtitan.distributed import ParallelDims

    from titan_motif.config import JobConfig
    from titan_motif.device import device_type
    from titan_motif.model import FLAVORS, Motif2Model
    from titan_motif.parallelize import parallelize

    config = JobConfig()
    config.training.mixed_precision_param = "bfloat16"
    config.activation_checkpoint.mode = recompute
    degrees = dict.fromkeys(("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep", "etp"), 1)
    with torch.device("meta"):
        model = Motif2Model(
            replace(FLAVORS["12_7b"], **{"n_layers": 4, "vocab_size": 1024} | arguments)
        )
    parallelize(model, ParallelDims(**degrees, world_size=1), config)
    model.to_empty(device=device_type)
    with torch.no_grad():
        for parameter in model.parameters():  # init_weights draws on the CPU: a minute at this size
            parameter.normal_(std=0.02)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 1024, (1, seq_len + 1), generator=generator).to(device_type)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        logits = model(tokens[:, :-1]).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:].flatten()).backward()
    return torch.cuda.max_memory_allocated()


def test_recomputation_takes_less_memory(one_rank):
    peaks = {}
    for recompute in ("none", "selective", "full"):
        peaks[recompute] = peak_bytes_of_a_step(recompute)
        gc.collect()  # FSDP's modules refer to each other: the model would stay in the next peak
        torch.cuda.empty_cache()
    # Of two blocks' feed-forward layers alone 'selective' keeps the gate's bfloat16 result, which
    # 'full' does not, and 'none' that of the other product besides.
    result_bytes = 2 * 4096 * 16_384 * 2
    assert peaks["none"] - peaks["selective"] > result_bytes
    assert peaks["selective"] - peaks["full"] > result_bytes


def test_a_step_of_parallel_muon_does_not_wait_for_the_device():
    from titan_motif.components.muon import ParallelMuon

    generator = torch.Generator("cuda").manual_seed(0)
    shapes = {"muon": [(256, 384), (384, 256), (256, 384)], "adamw": [(64,), (100, 32)]}
    groups = [
        {
            "params": [torch.nn.Parameter(torch.zeros(shape, device="cuda")) for shape in members],
            "algorithm": algorithm,
        }
        for algorithm, members in shapes.items()
    ]
    optimizer = ParallelMuon(groups, chunk_size=1)
    parameters = [p for group in groups for p in group["params"]]
    for step in range(3):
        for p in parameters:
            p.grad = torch.randn(p.shape, device="cuda", generator=generator)
        if step == 2:  # what is compiled or copied once is there
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(p.any() for p in parameters)
    optimizer.gate.settle()
    assert optimizer.gate.num_skipped == 0


def test_qk_clip_does_not_wait_for_the_device():
    import titan_motif.device  # noqa: F401

    # isort: split
    from titan_motif.config import Optimizer
    from titan_motif.model import FLAVORS, Motif2Model
    from titan_motif.optimizers import build_optimizers

    with torch.device("cuda"):
        model = Motif2Model(FLAVORS["debug"])
    model.init_weights()
    config = Optimizer(name="ParallelMuon", lr=1e-3, qk_clip=True, qk_clip_threshold=0.5)
    optimizers = build_optimizers([model], config, None)
    before = model.layers["0"].attention.q_proj.weight.detach().clone()
    tokens = torch.randint(0, 1024, (2, 64), device="cuda")
    for step in range(3):
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            model(tokens).float().logsumexp(-1).sum().backward()
            optimizers.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert optimizers.monitor.metrics()["attention/clipped_heads"] > 0
    assert model.layers["0"].attention.q_proj.weight.norm() < 0.8 * before.norm()
