"""`titan-motif plan` and `bench muon`: the figures by what is known of the large model."""

import json
from pathlib import Path

import pytest

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import cli
from titan_motif.components.muon.cost_model import Rates, predict
from titan_motif.components.muon.plan import Matrix, Region, make_plan
from titan_motif.config import Muon
from titan_motif.plan_memory import newton_schulz_bytes

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


SMALL = """
[model]
flavor = "12_7b"
args.n_layers = 2
[training]
dataset = "prepared"
seq_len = 4096
local_batch_size = 4
steps = 1
[compile]
enable = true
"""


@pytest.mark.parametrize(("gpus", "gpu"), [(8, "H200"), (64, "H100-80GB"), (400, "H100-80GB")])
def test_the_12_7b_model_fits_the_machines_that_its_files_name(gpus: int, gpu: str, tmp_path: Path):
    file = LARGE.replace(".toml", f"_{gpus}x{gpu.partition('-')[0].lower()}.toml")
    result = tmp_path / "plan.json"
    command = ["plan", "--config", file, "--gpus", str(gpus), "--gpu", gpu]
    assert cli.main([*command, "--json", str(result)]) == 0
    memory = json.loads(result.read_text())["memory"]
    assert memory["fits"]
    assert memory["seq_len"] == 16_384


PARTS = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "unsharded",
    "exchange",
    "logits",
    "evaluation",
)


def memory_of(tmp_path: Path, text: str, *arguments: str) -> dict:
    """Plan a job of these settings beside those above."""
    file, result = tmp_path / "job.toml", tmp_path / "plan.json"
    file.write_text(SMALL + text)
    assert cli.main(["plan", "--config", str(file), "--json", str(result), *arguments]) == 0
    return json.loads(result.read_text())["memory"]


def test_memory_is_shared_by_the_ranks_of_fsdp(tmp_path: Path):
    alone, eight, halves = (
        memory_of(tmp_path, "", *words)
        for words in (["--gpus", "1"], ["--gpus", "8"], ["--gpus", "8", "--replicas", "2"])
    )
    assert alone["parameters"] == 4 * (2 * 272_638_724 + 2 * 219_520 * 4096 + 4096)
    assert alone["optimizer"] == 2 * alone["parameters"]
    for name in ("parameters", "optimizer"):
        assert eight[name] == pytest.approx(alone[name] / 8, rel=1e-6)
        assert halves[name] == pytest.approx(alone[name] / 4, rel=1e-6)
    assert alone["peak_bytes"] == sum(alone[name] for name in PARTS)
    assert alone["peak_bytes"] == max(alone["moments"].values())
    assert alone["moment"] == "last block"
    assert (alone["gpu"], alone["capacity_bytes"]) == ("H100-80GB", int(79.18 * 2**30))


def test_every_rank_has_a_whole_model_for_evaluation(tmp_path: Path):
    text = '[evaluation]\nenable = true\ntasks = ["mmlu"]\n'
    memory = memory_of(tmp_path, text, "--gpus", "8")
    whole, embedding = 2 * 272_638_724 + 2 * 219_520 * 4096 + 4096, 219_520 * 4096
    resident = memory["parameters"] + memory["optimizer"]
    evaluation = {"evaluation": resident + 2 * whole + 4 * embedding}
    assert memory["moments"] == memory_of(tmp_path, "", "--gpus", "8")["moments"] | evaluation


def test_tensor_parallel_ranks_share_tokens_heads_and_vocabulary(tmp_path: Path):
    text = "[parallelism]\ntensor_parallel_degree = {}\n"
    whole, half = (memory_of(tmp_path, text.format(n), "--gpus", "8") for n in (1, 2))
    assert whole["moment"] == half["moment"] == "loss"
    assert half["parameters"] == pytest.approx(whole["parameters"], rel=1e-4)  # norms lie on both
    assert half["logits"] == whole["logits"] / 2
    assert whole["activations"] / 2 < half["activations"] < whole["activations"] / 1.5


def test_the_largest_batch_that_is_told_fits(tmp_path: Path, capsys):
    largest = memory_of(tmp_path, "", "--gpus", "1", "--gpu", "A100-80GB")["largest_local_batch"]
    for batch, fits in ((largest, True), (largest + 1, False)):
        capsys.readouterr()
        job = SMALL.replace("local_batch_size = 4", f"local_batch_size = {batch}")
        (tmp_path / "sized.toml").write_text(job)
        arguments = ["--config", str(tmp_path / "sized.toml"), "--gpus", "1", "--gpu", "A100-80GB"]
        assert cli.main(["plan", *arguments]) == 0
        out = capsys.readouterr().out
        assert ("1 GPU: does not fit: " in out) is not fits
    assert f"what would: a micro-batch of {largest} x 4096 tokens, or activation_ch" in out


def test_the_batch_of_phases_is_the_one_with_most_tokens(tmp_path: Path):
    assert plan("--gpus", "8", "--json", str(tmp_path / "plan.json")) == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    memory = found["memory"]
    assert (memory["micro_batch_tokens"], memory["seq_len"]) == (16_384, 16_384)
    gradients = 4 * 12_703_860_896 / 8  # all of them: a step has many micro-batches
    assert memory["gradients"] == pytest.approx(gradients, rel=1e-4)
    # A momentum for the matrices of blocks, two moments for all else.
    state = 4 * (10_905_190_400 + 2 * (12_703_860_896 - 10_905_190_400)) / 8
    assert memory["optimizer"] == pytest.approx(state, rel=1e-4)


def test_newton_schulz_needs_two_thirds_more_than_the_exchange_as_measured():
    matrix = Matrix(16_384, 4096, {rank: region(rank) for rank in range(8)})
    plan = make_plan([matrix] * 32, [range(8)], [1] * 32)
    assert newton_schulz_bytes(plan, Muon(), 4) == 2 * 4 * (3 * 16_384 * 4096 + 4 * 4096**2)
    exchanged = predict(plan, [1] * 32, Rates()).peak_exchange_bytes
    assert newton_schulz_bytes(plan, Muon(), 4) == pytest.approx(exchanged * 2 / 3, rel=0.01)
    exact = Muon(mode="exact")
    assert newton_schulz_bytes(plan, exact, 4) == 4 * (3 * 16_384 * 4096 + 2 * 4096**2)


def region(rank: int) -> Region:
    return Region(2048 * rank, 2048 * (rank + 1), 0, 4096)


def test_a_job_without_muon_is_planned_for_memory_alone(tmp_path: Path, capsys):
    file, result = tmp_path / "adamw.toml", tmp_path / "plan.json"
    file.write_text('[optimizer]\nname = "AdamW"\n')
    arguments = ["--config", str(file), "--gpus", "2", "--json", str(result)]
    assert cli.main(["plan", *arguments]) == 0
    found = json.loads(result.read_text())
    assert found["muon"] is None
    assert found["memory"]["fits"]
    assert "step ms" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words", "reason"),
    [
        ("activation_checkpoint.mode = 'memory_budget'", [], "where the compiler decides"),
        ("training.enable_cpu_offload = true", [], "training.enable_cpu_offload is true"),
        ("model.kernels = 'torch'", [], "model.kernels is 'torch'"),
        (
            "model.converters = ['quantize.linear.float8']",
            ["--gpu", "A100-80GB"],
            "A100-80GB multiplies no FP8",
        ),
    ],
)
def test_what_is_not_predicted_is_said_in_a_line(
    tmp_path: Path, text: str, words: list[str], reason: str, capsys
):
    file = tmp_path / "job.toml"
    file.write_text(f"{text}\ncompile.enable = true\n")
    assert cli.main(["plan", "--config", str(file), "--gpus", "2", *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not predicted" in line]
    assert reason in line


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
