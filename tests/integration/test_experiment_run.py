"""Cells of `experiment NAME --quick` that are really prepared and trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from whole_runs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def experiment(folder: Path, *words: str, name: str = "gda") -> subprocess.CompletedProcess:
    folders = ["--data", folder / "data", "--runs", folder / "runs", "--output", folder / "pages"]
    command = ["-m", "titan_motif.cli", "experiment", name, "--quick", "--device", "cpu"]
    return run([*command, *map(str, folders), *words])


def run(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )


def test_a_quick_cell_ends_in_a_page(tmp_path):
    finished = experiment(tmp_path, "--cells", "ratio4:0")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    content = json.loads((tmp_path / "pages/gda/results.json").read_text())
    row = content["cells"]["ratio4:0"]
    assert (row["step"], row["tokens_seen"]) == (20, 20_480)
    assert all(3 < loss < 7 for loss in row["validation_losses"].values())  # ln 1024 is 6.9
    assert list(row["accuracy"]["retrieval"]) == ["1", "2", "3", "4"]
    lambdas = row["by_layer"]["attention_lambda"]
    assert lambdas["step"] == [1, 5, 10, 15, 20]
    assert all(-0.1 < x < 1 for layer in ("layer_0", "layer_1") for x in lambdas[layer])
    page = (tmp_path / "pages/gda.md").read_text()
    assert "nothing here is a result" in page
    assert f"| text loss | - | {row['validation_losses']['text']:.4f} | - |" in page
    for name in ("losses", "accuracy", "layers"):
        assert (tmp_path / "pages/gda" / f"{name}.png").is_file()
    again = experiment(tmp_path, "--cells", "ratio4:0", "--resume")
    assert "1 of 1 cells are there already" in again.stdout
    other = experiment(tmp_path, "--cells", "ratio4:0", "--resume", "--tokens", "10240")
    assert other.returncode == 1
    assert other.stderr.count("error:") == 1
    assert "its results are of tokens 20480, these would be of 10240" in other.stderr


def test_a_grown_cell_begins_as_the_small_model(tmp_path):
    finished = experiment(tmp_path, "--cells", "grown:0", name="growth")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    row = json.loads((tmp_path / "pages/growth/results.json").read_text())["cells"]["grown:0"]
    assert row["tokens_seen"] == row["small"]["tokens_seen"] == 20_480
    exact, rounded = (row["equality"][dtype] for dtype in ("float64", "float32"))
    assert exact["largest_difference"] < 1e-12
    assert rounded["largest_difference"] < 1e-4
    assert exact["loss_after"] == pytest.approx(exact["loss_before"], abs=1e-12)
    assert exact["loss_before"] == pytest.approx(row["small"]["validation_loss"], abs=0.3)
    assert row["validation_loss"] < row["small"]["validation_loss"]
    page = (tmp_path / "pages/growth.md").read_text()
    assert "| 1 | float64 |" in page
    assert (tmp_path / "pages/growth/losses.png").is_file()


def test_two_ranks_time_a_step_of_muon(tmp_path):
    words = ["--cells", "parallel:0", "--runs", tmp_path / "runs", "--output", tmp_path / "pages"]
    command = ["-m", "titan_motif.cli", "experiment", "muon", "--quick", "--device", "cpu"]
    finished = run([*command, *map(str, words)])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    row = json.loads((tmp_path / "pages/muon/results.json").read_text())["cells"]["parallel:0"]
    assert (row["ranks"], row["simulated"], row["matrices"]) == (2, False, 28)
    assert [result["chunk_size"] for result in row["results"]] == [2, 4, 8, 16, 28]
    assert all(result["ms"] > 0 for result in row["results"])
    assert "| parallel, 28 | " in (tmp_path / "pages/muon.md").read_text()
    assert (tmp_path / "pages/muon/chunks.png").is_file()


def test_a_mixture_told_from_the_end_is_trained(tmp_path):
    finished = experiment(tmp_path, "--cells", "hard_first:0", name="curriculum")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    row = json.loads((tmp_path / "pages/curriculum/results.json").read_text())["cells"]
    assert row["hard_first:0"]["tokens_seen"] == 22_528
    assert list(row["hard_first:0"]["validation_losses"]) == ["english", "code", "mathematics"]
    page = (tmp_path / "pages/curriculum.md").read_text()
    assert "| mean of groups | - | - |" in page
    assert (tmp_path / "pages/curriculum/losses.png").is_file()
