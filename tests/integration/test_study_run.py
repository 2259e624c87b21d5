"""Cells of `study compile` and `bench train` that are really run, each in its process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from whole_runs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(small_corpus: Path, *command: str) -> str:
    corpus = [f"training.dataset_path={small_corpus}", "training.builtin_vocab_size=512"]
    sizes = ["--flavor", "debug", "--layers", "1", "--seq-len", "32", "--batch", "1"]
    words = [*command, *sizes, "--steps", "2", "--warmup", "1", "--override", *corpus]
    finished = subprocess.run(
        [sys.executable, "-m", "titan_motif.cli", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def check_row(row: dict) -> None:
    assert row["tokens_per_step"] == 32
    assert row["tokens_per_second"] == pytest.approx(32_000 / row["step_ms"])
    assert row["tflops"] == pytest.approx(row["flops_per_token"] * row["tokens_per_second"] / 1e12)
    assert row["step_ms_min"] <= row["step_ms"] <= row["step_ms_max"]
    assert 0 < row["forward_backward_ms"] + row["optimizer_ms"] < row["step_ms_max"]
    assert 0 < row["update_ms"] <= row["optimizer_ms"]
    assert len(row["losses"]) == 3
    assert all(5 < loss < 8 for loss in row["losses"])  # ln 1024 is 6.9
    assert (row["graph_breaks"], row["recompiles"]) == (0, 0)


def test_a_study_measures_real_steps(small_corpus: Path, tmp_path: Path):
    cells = "eager/torch/bf16/none/sdpa,eager/torch/bf16/full/sdpa,eager/torch/rowwise/none/sdpa"
    folder = tmp_path / "study"
    run(small_corpus, "study", "compile", "--cells", cells, "--output", str(folder))
    plain, full, fp8 = json.loads((folder / "results.json").read_text())["cells"].values()
    for row in (plain, full):
        check_row(row)
        assert row["graphs"] == 0
    assert plain["losses"] == pytest.approx(full["losses"], rel=1e-5)
    if plain["mfu"] is None:  # a device without a known peak, which has no FP8 either
        assert "model.converters" in fp8["error"]


def test_a_benchmark_measures_real_steps_of_both_networks(small_corpus: Path, tmp_path: Path):
    file = tmp_path / "table.json"
    only = "llama3-bf16,llama3-wide-bf16,ours-muon-bf16"
    told = run(small_corpus, "bench", "train", "--only", only, "--json", str(file))
    content = json.loads(file.read_text())
    for name in only.split(","):
        check_row(content["rows"][name])
        assert content["rows"][name]["graphs"] > 0
        assert f"{name}, composed" in told
    wide, ours = (content["rows"][name]["parameters"] for name in only.split(",")[1:])
    assert wide == pytest.approx(ours, rel=0.05)
