"""Which parameters Muon gets, of the models themselves."""

import pytest
import torch

import titan_motif.device  # noqa: F401
from titan_motif.components.muon.routing import route, routing_table
from titan_motif.model import FLAVORS, Motif2Model

SHAPES = {
    "tok_embeddings.weight": (9, 4),
    "scalars.layers.0.lambda_q1": (2,),
    "layers.0.attention.q_proj.weight": (6, 4),
    "layers.0.attention_norm.weight": (4,),
    "layers.1.attention.q_proj.weight": (6, 4),
    "output.weight": (9, 4),
}


def test_the_large_model_gives_its_280_matrices_to_muon():
    with torch.device("meta"):
        model = Motif2Model(FLAVORS["12_7b"])
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    routes = route(shapes)
    to_muon = [name for name, algorithm in routes.items() if algorithm == "muon"]
    assert len(to_muon) == 280
    assert all(name.startswith("layers.") and name.endswith("_proj.weight") for name in to_muon)
    # The rest: both ends, 81 block norms and 40 of heads, lambda's vectors, PolyNorm's two.
    assert len(routes) - 280 == 2 + 81 + 40 + 160 + 80


def test_patterns_override_the_rule():
    routes = route(SHAPES, muon_patterns=["output.weight"], adamw_patterns=["layers.1.*"])
    assert routes["output.weight"] == "muon"
    assert routes["layers.0.attention.q_proj.weight"] == "muon"
    assert routes["layers.1.attention.q_proj.weight"] == "adamw"
    assert routes["tok_embeddings.weight"] == "adamw"
    assert list(routes) == list(SHAPES)


def test_patterns_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match=r"adamw pattern 'layer\.\*' matches no parameter"):
        route(SHAPES, adamw_patterns=["layer.*"])
    with pytest.raises(ValueError, match=r"output.weight is claimed by the muon pattern 'out\*'"):
        route(SHAPES, muon_patterns=["out*"], adamw_patterns=["output.*"])
    with pytest.raises(ValueError, match=r"'layers.0.\*' matches .*norm.weight of shape \(4,\)"):
        route(SHAPES, muon_patterns=["layers.0.*"])


def test_the_table_counts_layers_and_names_rates():
    lines = routing_table(SHAPES, route(SHAPES), {"muon": 1e-3, "adamw": 4e-4})
    assert lines[0].split() == [
        "muon",
        "lr",
        "0.001",
        "layers.*.attention.q_proj.weight",
        "6",
        "x",
        "4",
        "(2)",
    ]
    assert len(lines) == 5
    assert all(line.startswith("adamw  lr 0.0004") for line in lines[1:])
