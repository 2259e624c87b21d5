"""Whole runs in emulated FP8: saved, gone on with, and as good as without."""

from pathlib import Path

import pytest
from whole_runs import ROOT, elsewhere, losses, run

SIZES = {"dim": 32, "head_dim": 16, "hidden_dim": 48}
EMULATED = [
    *(word for name, size in SIZES.items() for word in (f"--model.args.{name}", str(size))),
    "--model.converters",
    "quantize.linear.float8",
    "--quantize.linear.float8.emulate",
    "--training.steps",
    "10",
]


def test_a_run_that_gathers_in_float8_resumes(rank_pool, arguments, tmp_path: Path):
    words = [*arguments, *EMULATED]
    for setting in (
        "recipe_name=tensorwise",
        "enable_fsdp_float8_all_gather=true",
        "precompute_float8_dynamic_scale_for_fsdp=true",
    ):
        words.append(f"--quantize.linear.float8.{setting}")
    rank_pool.run(run, 2, words, str(ROOT))
    whole = losses(tmp_path / "run")
    assert whole[10] < whole[1]

    halves = elsewhere(words, tmp_path / "halves")
    (log, _) = rank_pool.run(run, 2, halves, str(ROOT), 5)
    assert any("14 linear layers in emulated FP8: tensorwise, gathered" in line for line in log)
    rank_pool.run(run, 2, halves, str(ROOT))
    assert losses(tmp_path / "halves") == whole


@pytest.mark.slow
def test_float8_learns_as_well(rank_pool, arguments, tmp_path: Path):
    words = [*arguments, *EMULATED]
    rank_pool.run(run, 2, words, str(ROOT))
    exact = elsewhere(
        [*words, "--model.converters", "", "--quantize.linear.float8.emulate=false"],
        tmp_path / "exact",
    )
    rank_pool.run(run, 2, exact, str(ROOT))
    rounded, plain = losses(tmp_path / "run"), losses(tmp_path / "exact")
    assert rounded != plain
    assert all(rounded[step] == pytest.approx(plain[step], rel=5e-3) for step in plain)
