"""`titan-motif grow`: from files to files, restarts, refusals, and the comparison at its end."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from small_models import overrides, random_model, write_model

import titan_motif.device  # noqa: F401

# isort: split
from safetensors.torch import load_file

from titan_motif import cli
from titan_motif.components.dcp_files import DcpFolder
from titan_motif.components.seal import content_problem
from titan_motif.components.sealing_writer import SealingWriter
from titan_motif.growth import grow as growing
from titan_motif.growth.grow import plan_growth
from titan_motif.growth.mapping import map_tensors
from titan_motif.growth.tensors import grow_moment, grow_tensor
from titan_motif.model import Motif2ModelArgs
from titan_motif.model.state_dict_adapter import our_name

SMALL = Motif2ModelArgs(
    dim=16, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=4, hidden_dim=24, grouped_ratio=1
)
LARGE = dataclasses.replace(SMALL, dim=32, n_layers=3, n_heads=10, hidden_dim=48, grouped_ratio=4)


@pytest.fixture
def model():
    return random_model(SMALL).float()


@pytest.fixture
def small(model, tmp_path: Path) -> Path:
    return write_model(tmp_path / "small", model, max_bytes=40_000)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text('[model]\nname = "motif2"\nflavor = "debug"\n' + overrides(LARGE))
    return path


def grow(source: Path, to: Path, job: Path, *more: str) -> int:
    arguments = ["--from", str(source), "--to", str(to), "--config", str(job), *more]
    return cli.main(["grow", *arguments])


def failure(capsys, *arguments) -> str:
    capsys.readouterr()
    assert grow(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return {our_name(name): value for name, value in found.items()}


def test_grow_writes_what_the_mapping_says(model, small: Path, job: Path, tmp_path: Path, capsys):
    table = tmp_path / "table.json"
    assert grow(small, tmp_path / "large", job, "--json", str(table)) == 0
    printed = capsys.readouterr().out
    state = model.state_dict()
    origins = map_tensors(SMALL, LARGE)
    found = tensors(tmp_path / "large")
    assert found.keys() == origins.keys()
    for name, origin in origins.items():
        assert torch.equal(found[name], grow_tensor(origin, state[origin.name], torch.float32)), (
            name
        )
    content = json.loads(table.read_text())
    assert content["parameters"] == sum(value.numel() for value in found.values())
    assert content["differences"]["random float64"]["logits"] < 1e-10
    assert content["differences"]["random float32"]["logits"] < 2e-5
    assert len(content["differences"]["random float64"]["hidden"]) == 3
    carried = plan_growth(SMALL, LARGE).lam_init
    assert tuple(content["lam_init"]) == carried
    assert f"[model.args]\nlam_init = [{', '.join(map(repr, carried))}]" in printed
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    assert (config["hidden_size"], config["grouped_ratio"]) == (32, 4)
    report = json.loads((tmp_path / "large" / "growth.json").read_text())
    assert [entry["inserted"] for entry in report["layers"]] == [False, False, True]
    assert report["unused"] == []
    assert content_problem(tmp_path / "large") is None
    assert not (tmp_path / "large.growing").exists()


def test_grow_takes_a_step_of_a_run_too(model, small: Path, job: Path, tmp_path: Path):
    step = tmp_path / "run" / "checkpoint" / "step-5"
    state = model.state_dict() | {"train_state": {"step": torch.tensor(5)}}
    dcp.save(state, storage_writer=SealingWriter(step), no_dist=True)
    resolved = tmp_path / "run" / "config.resolved.toml"
    resolved.write_text('[model]\nname = "motif2"\nflavor = "debug"\n' + overrides(SMALL))
    assert grow(step, tmp_path / "a", job) == 0
    assert grow(small, tmp_path / "b", job) == 0
    first, second = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("dtype", "snr"), [("bfloat16", None), ("float32", "20"), ("float64", "0")]
)
def test_grow_in_other_dtypes_and_with_noise(small, job, tmp_path: Path, dtype, snr):
    noise = [] if snr is None else ["--snr-db", snr]
    table = tmp_path / "table.json"
    arguments = ["--dtype", dtype, *noise, "--json", str(table)]
    assert grow(small, tmp_path / "large", job, *arguments) == 0
    found = tensors(tmp_path / "large")
    stored = getattr(torch, dtype)
    assert found["layers.0.attention.q_proj.weight"].dtype == stored
    lambdas = found["scalars.layers.0.lambda_q1"].dtype
    assert lambdas == (torch.float32 if dtype == "bfloat16" else stored)
    apart = json.loads(table.read_text())["differences"]["random float64"]["logits"]
    assert apart < {"bfloat16": 0.03, "float32": 1e-13, "float64": 1e-13}[dtype]


def test_grow_goes_on_after_a_kill(small, job, tmp_path: Path, monkeypatch, capsys):
    shards = ["--shard-gigabytes", "0.00004", "--snr-db", "20"]
    assert grow(small, tmp_path / "whole", job, *shards) == 0
    write, written = growing.write_shard, []

    def write_two(path: Path, *arguments):
        if len(written) == 2:
            path.with_name(f"{path.name}.new").write_text("half")
            raise OSError("killed")
        written.append(path.name)
        write(path, *arguments)

    monkeypatch.setattr(growing, "write_shard", write_two)
    assert failure(capsys, small, tmp_path / "large", job, *shards) == "error: killed"
    assert not (tmp_path / "large").exists()
    kept = {name: (tmp_path / "large.growing" / name).stat().st_mtime_ns for name in written}
    monkeypatch.setattr(growing, "write_shard", write)
    assert grow(small, tmp_path / "large", job, *shards) == 0
    for name, when in kept.items():
        assert (tmp_path / "large" / name).stat().st_mtime_ns == when
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "large" / path.name).read_bytes() == path.read_bytes(), path.name
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "large").iterdir()}
    assert grow(small, tmp_path / "large", job, *shards) == 0  # it is there
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "large").iterdir()} == before


def test_grow_refuses_in_one_line(small, job, tmp_path: Path, capsys, monkeypatch):
    def told(*arguments) -> str:
        return failure(capsys, *arguments)

    to = tmp_path / "large"
    job.write_text(job.read_text() + "rope_theta = 5e5\n")
    assert (
        "rope_theta (1e+06 -> 500000): the grown model would compute something else; --allow"
        in (told(small, to, job))
    )
    assert not to.exists()
    assert told(tmp_path / "nowhere", to, job) == f"error: {tmp_path / 'nowhere'}: no such folder"
    assert grow(small, to, job, "--allow", "rope_theta") == 0
    assert "grow: rope_theta 1e+06 -> 500000 was allowed: the differences above are its" in (
        capsys.readouterr().out
    )
    assert "holds something else, which is not replaced" in told(
        small, to, job, "--allow", "rope_theta", "--snr-db", "10"
    )
    assert told(small, to, job, "--shard-gigabytes", "0").startswith(
        "error: --shard-gigabytes is 0"
    )
    assert told(small, to, job, "--snr-db", "nan").startswith("error: --snr-db is nan; -100 to 300")
    (small / "config.json").unlink()
    assert "what network it holds is not known: neither config.json in it nor" in told(
        small, to, job
    )


def test_grow_finds_that_the_function_was_not_kept(small, job, tmp_path, monkeypatch, capsys):
    right = growing.grow_tensor

    def wrong(origin, source, dtype):
        grown = right(origin, source, dtype)
        return grown * 1.01 if origin.name == "layers.1.attention.v_proj.weight" else grown

    monkeypatch.setattr(growing, "grow_tensor", wrong)
    told = failure(capsys, small, tmp_path / "large", job)
    assert "the grown model computes something else: hidden states differ by" in told
    assert "after 2 layers, logits by" in told
    assert told.endswith(f"it lies in {tmp_path / 'large.wrong'}")
    assert not (tmp_path / "large").exists()


def test_grow_refuses_what_is_not_a_number(small, job, model, tmp_path, capsys):
    with torch.no_grad():
        model.layers["1"].feed_forward.up_proj.weight[3, 4] = float("nan")
    broken = write_model(tmp_path / "broken", model)
    told = failure(capsys, broken, tmp_path / "large", job)
    assert told.endswith("layers.1.feed_forward.up_proj.weight has values that are not finite")


def test_grow_divides_by_three_in_float32(small, job, model, tmp_path: Path):
    narrow = write_model(tmp_path / "narrow", model.bfloat16())
    thirds = dataclasses.replace(SMALL, dim=48, hidden_dim=72)
    job.write_text('[model]\nname = "motif2"\nflavor = "debug"\n' + overrides(thirds))
    assert grow(narrow, tmp_path / "large", job, "--dtype", "float32") == 0


def test_a_step_with_the_optimizer_is_grown_again_after_a_kill(model, job, tmp_path, monkeypatch):
    step = tmp_path / "run" / "checkpoint" / "step-5"
    state = model.state_dict()
    state["optimizer.state.norm.weight.exp_avg"] = torch.randn(16)
    dcp.save(state, storage_writer=SealingWriter(step), no_dist=True)
    resolved = tmp_path / "run" / "config.resolved.toml"
    resolved.write_text('[model]\nname = "motif2"\nflavor = "debug"\n' + overrides(SMALL))
    right = growing.grow_moment
    monkeypatch.setattr(growing, "grow_moment", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    assert grow(step, tmp_path / "large", job, "--optimizer", "grown") == 1
    assert (tmp_path / "large.growing").is_dir()
    monkeypatch.setattr(growing, "grow_moment", right)
    assert grow(step, tmp_path / "large", job, "--optimizer", "grown") == 0
    assert content_problem(tmp_path / "large") is None
    assert not (tmp_path / "large.growing.json").exists()


def test_grow_takes_the_optimizer_along(model, job: Path, tmp_path: Path, capsys):
    step = tmp_path / "run" / "checkpoint" / "step-5"
    state = model.state_dict()
    q, norm = "layers.1.attention.q_proj.weight", "norm.weight"
    torch.manual_seed(1)
    states = {
        f"optimizer.state.{q}.momentum": torch.randn_like(state[q]),
        f"optimizer.state.{norm}.exp_avg": torch.randn(16),
        f"optimizer.state.{norm}.exp_avg_sq": torch.rand(16),
        f"optimizer.state.{norm}.step": torch.tensor(5.0),
    }
    dcp.save(state | states, storage_writer=SealingWriter(step), no_dist=True)
    resolved = tmp_path / "run" / "config.resolved.toml"
    resolved.write_text('[model]\nname = "motif2"\nflavor = "debug"\n' + overrides(SMALL))
    assert grow(step, tmp_path / "large", job, "--optimizer", "grown") == 0
    found = DcpFolder(tmp_path / "large")
    origins = map_tensors(SMALL, LARGE)
    for name in origins:
        expected = grow_tensor(origins[name], state[origins[name].name], torch.float32)
        assert torch.equal(found.read(name), expected), name
    momentum = grow_moment(origins[q], states[f"optimizer.state.{q}.momentum"], 1)
    assert torch.equal(found.read(f"optimizer.state.{q}.momentum"), momentum)
    inserted = found.read("optimizer.state.layers.2.attention.q_proj.weight.momentum")
    assert inserted.shape == (40, 32)
    assert not inserted.any()
    squares = states[f"optimizer.state.{norm}.exp_avg_sq"].repeat(2) / 4
    assert torch.equal(found.read(f"optimizer.state.{norm}.exp_avg_sq"), squares)
    assert found.read(f"optimizer.state.{norm}.step") == 5
    assert len(found.states) == 5
    assert content_problem(tmp_path / "large") is None
    write_model(tmp_path / "bare", model)
    told = failure(capsys, tmp_path / "bare", tmp_path / "other", job, "--optimizer", "grown")
    assert told == f"error: {tmp_path / 'bare'}: has no optimizer's states to grow"
