"""`titan-motif plan` and `bench muon`: the figures by what is known of the large model."""

import json
from pathlib import Path

import pytest

from titan_motif import cli

ROOT = Path(__file__).resolve().parents[3]
LARGE = str(ROOT / "train_configs/motif2_12_7b.toml")


def plan(*arguments: str) -> int:
    return cli.main(["plan", "--config", LARGE, *arguments])


def test_the_large_model_on_8_64_and_400_gpus(tmp_path: Path, capsys):
    assert plan("--gpus", "8,64,400", "--json", str(tmp_path / "plan.json")) == 0
    eight, sixty_four, many = json.loads((tmp_path / "plan.json").read_text())
    for found, gpus in ((eight, 8), (sixty_four, 64), (many, 400)):
        assert found["gpus"] == gpus
        assert found["parameters"] == 12_703_860_896
        assert found["muon"]["parameters"] == 10_905_190_400
        assert found["muon"]["owner_scope"] == 1
    assert eight["muon"]["max_over_mean"] <= 1.02
    assert sixty_four["muon"]["max_over_mean"] <= 1.02
    # Seven eighths of the matrices' bytes, there and back, over eight ranks.
    assert eight["muon"]["bytes_per_rank"] == 2 * 2 * 7 * 10_905_190_400 // 64
    # There the largest matrix alone is more than a mean load.
    floor = many["muon"]["floor_of_max_over_mean"]
    assert many["muon"]["max_over_mean"] == pytest.approx(floor)
    assert floor > 2 > 1.2 > many["muon"]["max_over_mean_if_split_in_two"]
    assert "400 GPUs: one matrix is the floor, max / mean 2.26" in capsys.readouterr().out


def test_replicas_share_owners_as_far_as_it_pays(tmp_path: Path):
    file = tmp_path / "plan.json"
    for rates, scope in (([], 2), (["--gb-between-nodes", "1"], 1)):
        assert plan("--gpus", "64", "--replicas", "8", *rates, "--json", str(file)) == 0
        found = json.loads(file.read_text())["muon"]
        assert found["replicas"] == 8
        assert found["owner_scope"] == scope
        assert found["owners"] == 8 * scope


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "8,x"], "--gpus is '8,x'; positive numbers with commas are needed"),
        ([], f"--gpus is not given, and {LARGE} leaves data_parallel_shard_degree"),
        (["--gpus", "8", "--json", "/nowhere/a.json"], "/nowhere does not exist"),
        (["--gpus", "8", "--tflops", "0"], "more than 0 is needed"),
        (["--gpus", "8", "--replicas", "3"], "data_parallel_replicate_degree"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys):
    assert plan(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_job_without_muon_has_no_plan(tmp_path: Path, capsys):
    file = tmp_path / "adamw.toml"
    file.write_text('[optimizer]\nname = "AdamW"\n')
    assert cli.main(["plan", "--config", str(file), "--gpus", "2"]) == 1
    assert "optimizer.name is 'AdamW'; 'ParallelMuon' is needed" in capsys.readouterr().err


def test_bench_muon_counts_what_a_rank_does(tmp_path: Path, capsys):
    file = tmp_path / "muon.json"
    arguments = ["--ranks", "4", "--rank", "3", "--layers", "2", "--chunk-size", "3,all"]
    assert cli.main(["bench", "muon", *arguments, "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["simulated"]
    assert content["matrices"] == 14
    lines = {(line["mode"], line["chunk_size"]): line for line in content["results"]}
    assert sorted(lines) == [
        ("distributed", 3),
        ("distributed", 14),
        ("parallel", 3),
        ("parallel", 14),
    ]
    parallel, distributed = lines["parallel", 3], lines["distributed", 3]
    share = parallel["tflop_of_rank"] / distributed["tflop_of_rank"]
    assert 0.2 < share < 0.3  # a fourth, as evenly as 14 matrices can be dealt
    assert all(line["ms"] > 0 for line in content["results"])
    assert cli.main(["bench", "muon", "--chunk-size", "8,none"]) == 1
    assert "--chunk-size is '8,none'; positive numbers" in capsys.readouterr().err
