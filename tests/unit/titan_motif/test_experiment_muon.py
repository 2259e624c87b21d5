"""The experiment `muon`: what its cells time, and what its page says of them."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from titan_motif import cli
from titan_motif.experiments.cells import Cell
from titan_motif.experiments.job import CellOptions, Devices
from titan_motif.experiments.muon import ARMS, MuonExperiment
from titan_motif.experiments.page import write_page
from titan_motif.study.results import Results

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    "versions": {"python": "3.12", "torch": "2.11.0", "triton": "3.6.0"},
    "device_name": "a chip",
    "world_size": 2,
    "git_commit": "0123456789abcdef",
    "git_has_changes": False,
}


def row(ranks: int, milliseconds: dict[int, float]) -> dict:
    """Return a finished cell: of each chunk size the time, of which the plan foretold half."""
    results = [
        {
            "chunk_size": size,
            "ms": ms,
            "planned_ms": milliseconds[size] // 2,
            "peak_mb": 100.0 * size,
            "planned_mb": 80.0 * size,
            "tflops_per_gpu": 500.0,
            "tflop_of_rank": 57.7,
            "gb_of_rank": 4.77,
        }
        for size, ms in milliseconds.items()
    ]
    return {
        "ranks": ranks,
        "matrices": 280,
        "results": results,
        "seconds": 30.0,
        "environment": ENVIRONMENT,
    }


def test_cells_are_of_whole_chunks():
    """Sizes follow from ranks, and none is asked for twice."""
    large = MuonExperiment(CellOptions(Devices("cuda", 2)))
    words = {name: " ".join(large.words(arm)) for name, arm in ARMS.items()}
    assert words == {
        "parallel_8": "--flavor 12_7b --modes parallel --chunk-size 8,16,32,64,280 --ranks 8",
        "distributed_8": "--flavor 12_7b --modes distributed --chunk-size 8,16,32 --ranks 8",
        "parallel": "--flavor 12_7b --modes parallel --chunk-size 2,4,8,16,140 --layers 20",
        "distributed": "--flavor 12_7b --modes distributed --chunk-size 2,4,8 --layers 20",
    }
    small = MuonExperiment(CellOptions(Devices("cuda", 2), is_quick=True))
    assert small.words(ARMS["parallel_8"])[5] == "8,16,28"


def test_the_page_tells_times_plans_and_chunks(tmp_path):
    experiment = MuonExperiment(CellOptions(Devices("cuda", 2)))
    cells = {}
    for seed, more in enumerate((-1.0, 0.0, 1.0)):
        cells[f"parallel_8:{seed}"] = row(8, {8: 190 + more, 32: 121 + more, 64: 120 + more})
        cells[f"distributed_8:{seed}"] = row(8, {8: 900 + more, 32: 890 + more})
    results = Results(tmp_path / "results.json", {}, ENVIRONMENT, cells)
    file = write_page(experiment.page("titan-motif"), results, [], tmp_path, is_quick=False)
    page = file.read_text()
    assert "| ms, chunks of 4 a rank | 121.0 +- 1.0 | 890.0 +- 1.0 | - | - |" in page
    assert "| ms, fastest chunk size | -770.0 | 1.0 | parallel_8 |" in page
    assert "| MB, chunks of 4 a rank | +0 | 0 | none |" in page
    assert "| parallel_8, 32 | 121.0 +- 1.0 | 60.0 | 2.02 | 3,200 | 2,560 | 500 | 57.7 |" in page
    assert (
        "parallel_8: fastest with 64 matrices in a chunk (8 a rank); with 32 it is 0.8% s" in page
    )
    assert (
        "distributed_8: fastest with 32 matrices in a chunk (4 a rank); with 8 it is 1.1%" in page
    )
    assert "The plan: a step takes 2.00 to 2.03 times what it says" in page
    assert "parallel against distributed: not yet; there are too few seeds." in page
    assert (tmp_path / "muon/chunks.png").is_file()


def test_what_it_cannot_do_is_one_line(tmp_path, capsys):
    words = ["experiment", "muon", "--device", "cpu", "--output", str(tmp_path)]
    assert cli.main([*words, "--tokens", "5"]) == 1
    error = capsys.readouterr().err
    assert error == "error: --tokens is given; the experiment muon trains nothing\n"
    one_gpu = MuonExperiment(CellOptions(Devices("cuda", 1)))
    with pytest.raises(RuntimeError, match="parallel needs 2 GPUs; this machine shows 1"):
        one_gpu.run(Cell("parallel", 0), tmp_path / "run")


def test_the_manual_has_the_figures_of_the_finished_experiment():
    """docs/muon.md tells the means over seeds that docs/experiments/muon has."""
    results = json.loads((ROOT / "docs/experiments/muon/results.json").read_text())
    means: dict[tuple[str, int], tuple[str, ...]] = {}
    for mode in ("parallel", "distributed"):
        seeds = [results["cells"][f"{mode}_8:{seed}"]["results"] for seed in range(3)]
        for rows in zip(*seeds, strict=True):
            ms, mb, speed = (fmean(r[k] for r in rows) for k in ("ms", "peak_mb", "tflops_per_gpu"))
            means[mode, rows[0]["chunk_size"]] = (f"{ms:.1f}", f"{mb:,.0f}", f"{speed:,.0f}")
    page = (ROOT / "docs/muon.md").read_text().replace("**", "")
    told = re.findall(
        r"^\| (parallel|distributed) \| (\d+)[^|]* \| ([\d.]+) \| ([\d,]+) \| ([\d,]+) ", page, re.M
    )
    assert len(told) == 6
    for mode, size, *figures in told:
        assert tuple(figures) == means[mode, int(size)]
