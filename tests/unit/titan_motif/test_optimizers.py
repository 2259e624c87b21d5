"""What a job's [optimizer] becomes: groups, learning rates, one line for each mistake."""

import re
from pathlib import Path

import pytest
import torch

import titan_motif.device  # noqa: F401
from titan_motif import check_config
from titan_motif.components.muon import ParallelMuon
from titan_motif.components.muon.optimizer import update_scale
from titan_motif.config import Muon, Optimizer
from titan_motif.model import FLAVORS, Motif2Model
from titan_motif.optimizers import MuonContainer, build_optimizers, parallel_muon

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model() -> Motif2Model:
    model = Motif2Model(FLAVORS["debug"])
    model.init_weights()
    return model


def job(**muon) -> Optimizer:
    return Optimizer(name="ParallelMuon", lr=0.01, weight_decay=0.2, muon=Muon(**muon))


def test_groups_have_the_jobs_settings(model):
    optimizer = parallel_muon(model, job(adamw_lr=0.003, momentum=0.9))
    muon, adamw = optimizer.param_groups
    assert (muon["algorithm"], adamw["algorithm"]) == ("muon", "adamw")
    assert (muon["lr"], muon["momentum"], muon["weight_decay"]) == (0.01, 0.9, 0.2)
    assert (adamw["lr"], adamw["betas"], adamw["weight_decay"]) == (0.003, (0.9, 0.95), 0.2)
    names = {optimizer.names[p] for p in muon["params"]}
    assert len(names) == 4 * 7
    assert all(name.endswith("proj.weight") for name in names)
    assert {optimizer.names[p] for p in adamw["params"]} >= {
        "tok_embeddings.weight",
        "output.weight",
        "norm.weight",
    }


def test_patterns_move_parameters_and_have_to_match(model):
    optimizer = parallel_muon(
        model, job(adamw_patterns=["*.k_proj.weight"], muon_patterns=["output.weight"])
    )
    names = [optimizer.names[p] for p in optimizer.param_groups[0]["params"]]
    assert len(names) == 4 * 6 + 1
    assert "output.weight" in names
    with pytest.raises(ValueError, match=r"adamw pattern '\*.key.weight' matches no parameter"):
        parallel_muon(model, job(adamw_patterns=["*.key.weight"]))


def test_frozen_parameters_are_nobodys(model):
    model.tok_embeddings.weight.requires_grad_(False)
    model.layers["0"].feed_forward.up_proj.weight.requires_grad_(False)
    optimizer = parallel_muon(model, job())
    assert len(optimizer.param_groups[0]["params"]) == 4 * 7 - 1
    assert "tok_embeddings.weight" not in optimizer.names.values()


def test_one_process_without_ranks_takes_the_same_steps(model):
    """Plain tensors: the update is semi-orthogonal, scaled, decayed and AdamW-free."""
    optimizer = parallel_muon(model, job(mode="exact"))
    p = model.layers["0"].feed_forward.up_proj.weight
    before, generator = p.detach().clone(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    update = (before * (1 - 0.01 * 0.2) - p.detach()) / (0.01 * 0.2 * max(p.shape) ** 0.5)
    values = torch.linalg.svdvals(update.double())
    assert 0.7 < values.min() <= values.max() < 1.25
    # Its directions are the gradient's: the momentum is all gradient yet.
    u, _, vh = torch.linalg.svd(p.grad.double(), full_matrices=False)
    assert torch.linalg.matrix_norm(update - u @ vh) / len(values) ** 0.5 < 0.25


def test_scales():
    assert update_scale("match_adamw", 100, 25) == pytest.approx(2.0)
    assert update_scale("spectral", 100, 25) == pytest.approx(2.0)
    assert update_scale("spectral", 25, 100) == 1.0
    assert update_scale("none", 25, 100) == 1.0
    with pytest.raises(ValueError, match="scale is 'big'; one of match_adamw, spectral, none"):
        update_scale("big", 1, 1)


BAD_GROUPS = {
    "algorithm": ({"algorithm": "sgd"}, "algorithm is 'sgd'; muon or adamw is needed"),
    "setting": ({"algorithm": "muon", "betas": (0, 0)}, "muon groups have no betas"),
    "shape": (
        {"algorithm": "muon", "params": [("norm", torch.nn.Parameter(torch.ones(3)))]},
        "norm has the shape (3,); Muon needs a matrix",
    ),
}


@pytest.mark.parametrize("case", BAD_GROUPS)
def test_bad_groups_are_refused(case: str):
    group, message = BAD_GROUPS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        ParallelMuon([{"params": [torch.nn.Parameter(torch.ones(3, 3))]} | group])


def test_the_container_saves_and_loads_state_but_not_settings(model):
    container = MuonContainer(model, job())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    container.step()
    saved = container.state_dict()
    other = Motif2Model(FLAVORS["debug"])
    loaded = MuonContainer(other, job(momentum=0.5))
    loaded.load_state_dict(saved)
    p, q = (m.layers["1"].attention.q_proj.weight for m in (model, other))
    momentum = container.optimizers[0].state[p]["momentum"]
    assert momentum.any()
    assert torch.equal(loaded.optimizers[0].state[q]["momentum"], momentum)
    assert loaded.optimizers[0].param_groups[0]["momentum"] == 0.5
    assert not [key for key in saved if "param_names" in key]


def test_adamw_alone_stays_a_choice(model):
    container = build_optimizers([model], Optimizer(name="AdamW"), parallel_dims=None)
    assert [type(o) for o in container.optimizers] == [torch.optim.AdamW]


BAD_VALUES = {
    "without Muon": (
        ["--optimizer.name", "AdamW", "--optimizer.muon.momentum", "0.9"],
        "optimizer.muon.momentum is 0.9; it needs optimizer.name to be 'ParallelMuon', which is",
    ),
    "implementation": (
        ["--optimizer.implementation", "foreach"],
        "optimizer.implementation is 'foreach'; ParallelMuon has one implementation: 'fused'",
    ),
    "steps": (
        ["--optimizer.muon.polar_express_steps", "7"],
        "polar_express_steps is 7; it needs coefficients = 'polar_express'",
    ),
    "chunk": (["--optimizer.muon.chunk_size", "0"], "chunk_size is 0; -1 (4 for each rank) or at"),
    "rate": (["--optimizer.muon.adamw_lr", "-1.0"], "adamw_lr is -1.0; more than 0 is needed"),
    "pattern": (
        ["--optimizer.muon.adamw_patterns", "*.key.weight"],
        "adamw_patterns is ['*.key.weight']; adamw pattern '*.key.weight' matches no parameter",
    ),
    "scope": (
        ["--optimizer.muon.owner_scope", "3"],
        "owner_scope is 3; -1 or a divisor of parallelism.data_parallel_replicate_degree, 1, is",
    ),
    "momentum": (["--optimizer.muon.momentum", "1.0"], "momentum is 1.0; 0.0 to below 1.0 is"),
    "mode": (["--optimizer.muon.mode", "fast"], "mode is 'fast'"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_wrong_setting_is_one_line(case: str, capsys, monkeypatch):
    arguments, message = BAD_VALUES[case]
    monkeypatch.chdir(ROOT)
    name = [] if "--optimizer.name" in arguments else ["--optimizer.name", "ParallelMuon"]
    words = ["--job.config_file", "train_configs/debug.toml", *name, *arguments]
    assert check_config.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
