"""`titan-motif average`: the mean of steps, which steps, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from small_models import overrides, random_model

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import cli
from titan_motif.components.dcp_files import DcpFolder, write_dcp
from titan_motif.components.safetensors_files import TensorShape
from titan_motif.components.seal import break_seal
from titan_motif.model import Motif2ModelArgs

ARGS = Motif2ModelArgs(dim=16, n_layers=2, n_heads=5, n_kv_heads=2, head_dim=4, hidden_dim=24)


@pytest.fixture
def states(tmp_path: Path) -> dict[int, dict[str, torch.Tensor]]:
    """Four steps of a run."""
    saved = {}
    for step in (5, 10, 15, 20):
        state = random_model(ARGS, seed=step).float().state_dict()
        shapes = {name: TensorShape(tuple(v.shape), v.dtype) for name, v in state.items()}
        write_dcp(tmp_path / "run" / "checkpoint" / f"step-{step}", shapes, state.__getitem__)
        saved[step] = state
    job = '[model]\nname = "motif2"\nflavor = "debug"\n' + overrides(ARGS)
    (tmp_path / "run" / "config.resolved.toml").write_text(job)
    return saved


def average(tmp_path: Path, name: str, *more: str) -> int:
    arguments = ["--from", str(tmp_path / "run" / "checkpoint"), "--to", str(tmp_path / name)]
    return cli.main(["average", *arguments, *more])


def test_average_is_the_mean_of_the_last_whole_steps(states, tmp_path: Path):
    break_seal(tmp_path / "run" / "checkpoint" / "step-20")  # a save that was cut off
    table = tmp_path / "table.json"
    assert average(tmp_path, "a", "--last", "2", "--json", str(table)) == 0
    assert json.loads(table.read_text())["steps"] == ["step-15", "step-10"]
    assert average(tmp_path, "b", "--steps", "15", "5", "10") == 0
    for folder, steps in (("a", (15, 10)), ("b", (5, 10, 15))):
        found = DcpFolder(tmp_path / folder)
        assert found.tensors.keys() == states[5].keys()
        for name in states[5]:
            mean = torch.stack([states[step][name] for step in steps]).double().mean(0).float()
            assert torch.equal(found.read(name), mean), name
    assert cli.main(["export", "--from", str(tmp_path / "a"), "--to", str(tmp_path / "hf")]) == 0


def test_average_refuses_in_one_line(states, tmp_path: Path, capsys):
    for more, told in (
        (["--last", "5"], "--last is 5; the whole steps in"),
        (["--last", "0"], "--last is 0; the whole steps in"),
        (["--steps", "5", "7"], "--steps names 7; the whole steps there are 5, 10, 15, 20"),
    ):
        assert average(tmp_path, "a", *more) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert not (tmp_path / "a").exists()
