"""`titan-motif bench train`: what it measures, what it composes, and what it compares."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from titan_motif import cli
from titan_motif.bench import composition, train
from titan_motif.bench.composition import Composition, compose, measure_optimizers
from titan_motif.bench.contenders import CONTENDERS, compositions, ratios
from titan_motif.bench.muon import matrices_of, shapes_by_algorithm
from titan_motif.model import FLAVORS


def row(tokens_per_second: float, flops_per_token: float, update_ms: float = 80.0) -> dict:
    step_ms = 16_384_000 / tokens_per_second
    return {
        "parameters": 4e9,
        "flops_per_token": flops_per_token,
        "tokens_per_step": 16_384,
        "tokens_per_second": tokens_per_second,
        "tflops": tokens_per_second * flops_per_token / 1e12,
        "mfu": tokens_per_second * flops_per_token / 989e12,
        "step_ms": step_ms,
        "forward_backward_ms": step_ms - update_ms - 20.0,
        "optimizer_ms": update_ms + 5.0,
        "update_ms": update_ms,
        "peak_memory_gib": 65.4,
        "device": "NVIDIA H200",
        "versions": {"torch": "2.11.0"},
    }


def test_a_step_of_a_large_job_is_put_together():
    measured = row(32_000, 2e10)  # 512 ms: 412 forward and backward, 80 the updates, 20 the rest
    step = compose(measured, 40_960, adamw_ms=4.0, muon_ms=36.0)
    assert step == Composition(40_960, 412 * 2.5, 20.0, 4.0, 36.0)
    assert step.step_ms == pytest.approx(1090.0)
    assert step.tokens_per_second == pytest.approx(40_960 / 1.090)
    assert str(step) == (
        "40,960 tokens in 1090.0 ms = forward and backward 1030.0 + clipping and the rest 20.0 + "
        "AdamW 4.0 + Muon 36.0"
    )


def test_a_peer_is_composed_alike_and_shares_its_updates_evenly():
    rows = {name: row(32_000, 2e10) for name in ("llama3-bf16", "ours-bf16", "ours-muon-bf16")}
    optimizers = {"ranks": 8, "adamw_ms": 4.0, "muon_ms": 36.0}
    composed = compositions(rows, optimizers, 40_960)
    assert set(composed) == {"llama3-bf16", "ours-muon-bf16"}
    peer, ours = composed["llama3-bf16"], composed["ours-muon-bf16"]
    assert (peer.adamw_ms, peer.muon_ms) == (10.0, 0.0)
    assert (ours.adamw_ms, ours.muon_ms) == (4.0, 36.0)


def test_ratios_are_to_peers_of_the_same_precision():
    rows = {
        "llama3-bf16": row(30_000, 2.0e10),
        "llama3-wide-bf16": row(28_000, 2.1e10),
        "llama3-fp8": row(36_000, 2.0e10),
        "ours-bf16": row(29_400, 2.2e10),
        "ours-fp8": row(36_000, 2.2e10),
    }
    found = ratios(rows, {"llama3-bf16": Composition(40, 1.0, 0, 0, 0)})
    assert found["ours-bf16"] == pytest.approx(
        {"tflops_over_llama3": 0.98 * 1.1, "tokens_over_wide": 1.05}
    )
    assert found["ours-fp8"]["tflops_over_llama3"] == pytest.approx(1.1)
    assert found["ours-fp8"]["tokens_over_wide"] is None
    assert found["llama3-bf16, composed"]["tflops_over_llama3"] == 1.0


def test_muon_and_adamw_update_everything():
    args = FLAVORS["debug"]
    shapes = shapes_by_algorithm(args)
    assert len(shapes["muon"]) == 7 * args.n_layers
    assert shapes["adamw"].count((args.vocab_size, args.dim)) == 2
    with torch.device("meta"):
        from titan_motif.model import Motif2Model

        total = sum(p.numel() for p in Motif2Model(args).parameters())
    numbers = [torch.Size(shape).numel() for each in shapes.values() for shape in each]
    assert sum(numbers) == total
    assert len(matrices_of("debug", 2)) == 14
    assert matrices_of("debug", None) == shapes["muon"]


def test_the_optimizers_of_a_rank_are_timed():
    found = measure_optimizers(dataclasses.replace(FLAVORS["debug"], n_layers=1), ranks=3)
    assert found["ranks"] == 3
    assert found["muon_ms"] > 0
    assert found["adamw_ms"] > 0


@pytest.fixture
def started(monkeypatch) -> list[tuple[str, list[str]]]:
    """What was run: by network or module, and its settings."""
    seen = []

    def run(overrides, conditions, model):
        seen.append((model, overrides))
        fails = model == "llama3_widened" and "--model.converters=" not in str(overrides)
        return {"error": "out of memory: all of it"} if fails else row(30_000, 2e10)

    def run_module(module, arguments, timeout):
        seen.append((module, arguments))
        return {"ranks": 8, "adamw_ms": 4.0, "muon_ms": 36.0}

    monkeypatch.setattr(train, "run_cell", run)
    monkeypatch.setattr(train, "run_module", run_module)
    monkeypatch.setattr(train, "prepare_data", lambda jobs: None)
    return seen


def test_all_cells_are_measured_compared_and_written(tmp_path: Path, capsys, started):
    file = tmp_path / "table.json"
    sizes = ["--flavor", "12_7b", "--layers", "8", "--seq-len", "4096", "--batch", "4"]
    assert cli.main(["bench", "train", *sizes, "--json", str(file)]) == 0
    told = capsys.readouterr()
    assert "ours-bf16  30,000 tokens/s  600 TFLOPS  MFU 60.7%  65.4 GiB" in told.err
    assert "not measured: llama3-wide-bf16: out of memory: all of it\n" in told.out
    assert "ours-muon-fp8, composed for one of 8 ranks (Muon): 40,960 tokens in " in told.out
    assert "llama3-fp8, composed for one of 8 ranks (AdamW): 40,960 tokens in " in told.out

    models = [name for name, _ in started]
    assert models[: len(CONTENDERS)] == [one.model for one in CONTENDERS.values()]
    assert models[len(CONTENDERS) :] == ["titan_motif.bench.composition"]
    settings = dict(zip(CONTENDERS, (words for _, words in started), strict=False))
    assert all("--compile.enable=true" in words for words in settings.values())
    fp8 = "--model.converters=quantize.linear.float8"
    assert [name for name, words in settings.items() if fp8 in words] == [
        name for name in CONTENDERS if name.endswith("fp8")
    ]
    assert "--quantize.linear.float8.recipe_name=rowwise_with_gw_hp" in settings["ours-fp8"]
    assert "--model.kernels=torch" in settings["ours-plain-bf16"]
    assert "--optimizer.qk_clip=true" in settings["ours-muon-fp8"]
    of_optimizers = started[len(CONTENDERS)][1]
    assert of_optimizers == ["--ranks", "8", "--", *settings["ours-muon-bf16"]]
    assert "--model.args.n_layers=8" in of_optimizers

    content = json.loads(file.read_text())
    assert (content["device"], content["recipe"]) == ("NVIDIA H200", "rowwise_with_gw_hp")
    assert content["workload"]["layers"] == 8
    assert content["ratios"]["ours-fp8"]["tokens_over_wide"] == 1.0
    assert content["ratios"]["ours-bf16"]["tokens_over_wide"] is None
    assert content["composed"]["ours-muon-bf16"]["muon_ms"] == 36.0


def test_the_optimizers_of_a_job_are_measured(tmp_path: Path):
    job = ["--model.flavor=debug", "--model.args.n_layers=1"]
    file = tmp_path / "row.json"
    assert composition.main([str(file), "--ranks", "2", "--", *job]) == 0
    found = json.loads(file.read_text())
    assert found["ranks"] == 2
    assert found["muon_ms"] > 0
    assert found["adamw_ms"] > 0


def test_some_cells_can_be_picked(capsys, started):
    assert cli.main(["bench", "train", "--peer", "none", "--flavor", "debug"]) == 0
    assert {model for model, _ in started} == {"motif2", "titan_motif.bench.composition"}
    started.clear()
    capsys.readouterr()
    assert cli.main(["bench", "train", "--only", "ours-fp8,llama3-fp8", "--emulate"]) == 0
    assert [model for model, _ in started] == ["llama3", "motif2"]
    assert all("--quantize.linear.float8.emulate=true" in words for _, words in started)
    assert "composed" not in capsys.readouterr().out


def test_it_fails_where_no_cell_ran(capsys, monkeypatch, started):
    monkeypatch.setattr(train, "run_cell", lambda *arguments: {"error": "timed out after 1 s"})
    assert cli.main(["bench", "train", "--only", "ours-muon-bf16"]) == 1
    told = capsys.readouterr()
    assert "not measured: ours-muon-bf16: timed out after 1 s\n" in told.out
    assert told.err.endswith("error: no cell ran\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "theirs"], "--only has 'theirs'; of llama3-bf16, "),
        (["--only", "llama3-fp8", "--peer", "none"], "and --peer is none; one of them is allowed"),
        (["--ranks", "0"], "--ranks is 0; at least 1 is needed"),
        (["--tokens-per-step", "0"], "--tokens-per-step is 0; at least 1 is needed"),
        (["--steps", "0"], "--steps is 0; at least 1 is needed"),
        (["--flavor", "7b"], "--flavor is '7b'; one of debug, "),
        (["--override", "compile.enable=false"], "an option of its own decides that"),
        (["--override", "optimizer.muon.method=gram"], "measured with its own defaults"),
        (["--json", "/nowhere/table.json"], "the folder /nowhere does not exist"),
    ],
)
def test_it_refuses_in_one_line(arguments: list[str], message: str, capsys):
    assert cli.main(["bench", "train", *arguments]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
