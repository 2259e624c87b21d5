"""Growing models: every tensor's origin, the same function at any ratio, files and refusals."""

import dataclasses
import json

import pytest
import torch
from small_models import random_model

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif.growth.grow import describe, plan_growth
from titan_motif.growth.mapping import (
    Axis,
    GrowthError,
    Origin,
    growth_problems,
    layer_origins,
    map_tensors,
)
from titan_motif.growth.tensors import add_paired_noise, grow_moment, grow_tensor
from titan_motif.model import FLAVORS, Motif2Model, Motif2ModelArgs
from titan_motif.model.model import parameter_shapes
from titan_motif.model.state_dict_adapter import released_name

SMALL = Motif2ModelArgs(
    dim=12,
    n_layers=4,
    n_heads=4,
    n_kv_heads=4,
    head_dim=4,
    hidden_dim=20,
    grouped_ratio=1,
    vocab_size=50,
    kernels="torch",
    attention="sdpa",
    tie_embeddings=True,
)
LARGE = dataclasses.replace(
    SMALL, dim=24, n_layers=5, n_heads=10, hidden_dim=40, grouped_ratio=4, tie_embeddings=False
)
GROWTHS = {
    "as the report's": (SMALL, LARGE),
    "nothing": (SMALL, SMALL),
    "ratio 3, thirds": (SMALL, dataclasses.replace(LARGE, dim=36, n_heads=8, grouped_ratio=3)),
    "uneven copies": (
        dataclasses.replace(SMALL, n_heads=6, grouped_ratio=2),
        dataclasses.replace(LARGE, n_heads=12, grouped_ratio=5),
    ),
    "groups too": (SMALL, dataclasses.replace(LARGE, n_heads=20)),
    "groups and keys": (SMALL, dataclasses.replace(LARGE, n_heads=20, n_kv_heads=8)),
    "two groups a pair": (
        dataclasses.replace(SMALL, n_heads=8),
        dataclasses.replace(LARGE, n_heads=40, n_kv_heads=8),
    ),
    "tied stays tied": (SMALL, dataclasses.replace(LARGE, tie_embeddings=True)),
    "untied": (dataclasses.replace(SMALL, tie_embeddings=False), LARGE),
    "plain attention": (
        dataclasses.replace(SMALL, grouped_ratio=0),
        dataclasses.replace(LARGE, grouped_ratio=0, n_heads=8, n_kv_heads=8),
    ),
    "twice as deep": (SMALL, dataclasses.replace(LARGE, n_layers=8)),
}


def grown_model(small: Motif2Model, wanted: Motif2ModelArgs, snr_db=None) -> Motif2Model:
    large = plan_growth(small.model_args, wanted)
    state = small.state_dict()
    grown = {}
    for name, origin in map_tensors(small.model_args, large).items():
        grown[name] = grow_tensor(origin, state[origin.name], torch.float64)
        if snr_db is not None:
            add_paired_noise(grown[name], origin, name, 0, snr_db)
    model = Motif2Model(large)
    model.scalars.reset_buffers()  # in float32, as the small model has them
    model = model.double()
    model.load_state_dict(grown)
    return model


def difference(small: Motif2Model, large: Motif2Model) -> float:
    tokens = torch.randint(small.model_args.vocab_size, (3, 17))
    with torch.no_grad():
        then, now = small(tokens), large(tokens)
    return float((then - now).abs().max() / then.abs().max())


@pytest.mark.parametrize("case", GROWTHS)
@pytest.mark.parametrize("snr_db", [None, 10.0])
def test_grow_keeps_the_function(case: str, snr_db: float | None):
    args, wanted = GROWTHS[case]
    small = random_model(args)
    large = grown_model(small, wanted, snr_db)
    assert difference(small, large) < 1e-12


def test_grow_needs_every_tensor_but_those_that_an_inserted_block_reads_with():
    small = random_model(SMALL)
    large = grown_model(small, LARGE)
    inserted = {str(i) for i, (_, is_new) in enumerate(layer_origins(SMALL, LARGE)) if is_new}
    for name, parameter in large.named_parameters():
        layer = name.removeprefix("scalars.").split(".")[1] if "layers" in name else None
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(0.1)
        is_written = name.endswith(("o_proj.weight", "down_proj.weight"))
        is_silent = layer in inserted and not is_written
        assert (difference(small, large) < 1e-12) == is_silent, name
        with torch.no_grad():
            parameter.copy_(before)


def test_grow_with_noise_makes_copies_differ_and_is_as_loud_as_asked():
    small = random_model(SMALL)
    quiet, loud = (grown_model(small, LARGE, snr_db) for snr_db in (None, 20.0))
    for name, plain in quiet.named_parameters():
        noise = loud.get_parameter(name) - plain
        is_inserted_zero = float(plain.detach().abs().max()) == 0
        if plain.ndim == 1 or name == "tok_embeddings.weight" or is_inserted_zero:
            assert not noise.any(), name
            continue
        ratio = float((plain.square().mean() / noise.square().mean()).sqrt().detach())
        assert ratio == pytest.approx(10, rel=0.25), name
    gate = loud.layers["0"].feed_forward.gate_proj.weight
    assert not torch.equal(gate[:, :12], gate[:, 12:])
    assert not torch.equal(gate[:20], gate[20:])
    again = grown_model(small, LARGE, 20.0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in loud.state_dict().items())


def test_grow_inserts_blocks_evenly():
    inserted = [
        i for i, (_, new) in enumerate(layer_origins(FLAVORS["2_6b"], FLAVORS["12_7b"])) if new
    ]
    assert inserted == [4, 9, 14, 19, 24, 29, 34, 39]
    assert layer_origins(SMALL, LARGE)[3:] == [(3, False), (3, True)]


def test_grow_maps_every_tensor_of_the_released_models():
    small, large = FLAVORS["2_6b"], FLAVORS["12_7b"]
    with pytest.raises(GrowthError, match=r"^rope_theta \(500000 -> 1e\+06\): the grown model wou"):
        plan_growth(small, large)
    large = plan_growth(small, large, ["rope_theta"])
    assert len(large.lam_init) == 40
    assert large.lam_init[3] == large.lam_init[4] == small.layer_lam_init[3]
    origins = map_tensors(small, large)
    shapes, sources = parameter_shapes(large), parameter_shapes(small)
    assert list(origins) == list(shapes)
    assert len({released_name(name) for name in origins}) == 643
    for name, origin in origins.items():
        assert tuple(len(axis.index) * axis.unit for axis in origin.axes) == shapes[name], name
        for axis, size in zip(origin.axes, sources[origin.name], strict=True):
            assert set(axis.index) == set(range(size // axis.unit)), name
    assert {origin.name for origin in origins.values()} == set(sources)
    q = origins["layers.0.attention.q_proj.weight"].axes[0]
    assert q.index[:10] == (0, 0, 0, 0, 1, 2, 2, 2, 2, 3)
    assert q.unit == 128
    o = origins["layers.0.attention.o_proj.weight"].axes[1]
    assert o.index[:8] == (0, 0, 0, 0, 1, 1, 1, 1)
    assert o.unit == 256
    told = describe(origins["layers.0.attention.o_proj.weight"])
    assert told == (
        "layers.0.attention.o_proj.weight: rows x2, columns x4 by 256, divided by their copies"
    )
    zeros = [name for name, origin in origins.items() if origin.is_zero]
    assert len(zeros) == 16
    assert zeros[:2] == [
        "layers.4.attention.o_proj.weight",
        "layers.4.feed_forward.down_proj.weight",
    ]


REFUSED = {
    "head_dim": ({"head_dim": 8}, "head_dim is 8 and was 4; growth keeps it"),
    "vocabulary": ({"vocab_size": 60}, "vocab_size is 60 and was 50; growth keeps it"),
    "epsilon": ({"norm_eps": 1e-5}, "norm_eps is 1e-05 and was 1e-06; growth keeps it"),
    "width": ({"dim": 30}, "dim is 30; a multiple of the small model's 12 is needed"),
    "hidden": ({"hidden_dim": 50}, "hidden_dim is 50; a multiple of the small model's 20"),
    "depth": ({"n_layers": 3}, "n_layers is 3; at least 4 are needed"),
    "plain": ({"grouped_ratio": 0, "n_heads": 4}, "plain and differential attention do not grow"),
    "groups": (
        {"n_heads": 15, "n_kv_heads": 2},
        "n_heads is 15: 3 groups; a multiple of the small model's 2 is needed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_grow_refuses_what_does_not_fit(case: str):
    changes, message = REFUSED[case]
    problems = growth_problems(SMALL, dataclasses.replace(LARGE, **changes))
    assert any(message in problem for problem in problems), problems


def test_grow_refuses_to_make_one_matrix_of_two_or_fewer_signal_heads():
    untied = dataclasses.replace(SMALL, tie_embeddings=False)
    (problem,) = growth_problems(untied, dataclasses.replace(LARGE, tie_embeddings=True))
    assert problem == "tie_embeddings is true; two matrices of the small model cannot become one"
    (problem,) = growth_problems(LARGE, dataclasses.replace(LARGE, n_heads=8, grouped_ratio=3))
    assert problem == "grouped_ratio is 3; at least the small model's 4 is needed"


def test_grow_carries_lambdas_constants_along_unless_asked_otherwise():
    carried = plan_growth(SMALL, LARGE)
    assert carried.lam_init == (*SMALL.layer_lam_init, SMALL.layer_lam_init[3])
    other = dataclasses.replace(LARGE, lam_init=(0.1,) * 5)
    with pytest.raises(GrowthError, match=r"lam_init \(not those of the small model's layers\)"):
        plan_growth(SMALL, other)
    assert plan_growth(SMALL, other, ["lam_init"]).lam_init == other.lam_init
    assert plan_growth(SMALL, LARGE, ["lam_init"]).lam_init is None
    assert plan_growth(SMALL, dataclasses.replace(LARGE, lam_init=carried.lam_init)) == carried


def test_grow_of_a_sixteenth_of_the_released_widths():
    """All widths of 2.6B and 12.7B divided by 16, head counts kept: float64 and float32."""
    small, large = (
        dataclasses.replace(
            FLAVORS[name],
            dim=FLAVORS[name].dim // 16,
            hidden_dim=FLAVORS[name].hidden_dim // 16,
            head_dim=8,
            vocab_size=512,
            rope_theta=5e5,
            kernels="torch",
            attention="sdpa",
        )
        for name in ("2_6b", "12_7b")
    )
    model = random_model(small)
    with torch.no_grad():  # as loud as a trained model's, or 40 layers overflow float32's digits
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.2)
    for snr_db in (None, 30.0):
        grown = grown_model(model, large, snr_db)
        assert difference(model, grown) < 1e-10
        assert difference(model.float(), grown.float()) < 2e-5
        model = model.double()
    json.dumps(dataclasses.asdict(grown.model_args))


@pytest.mark.parametrize(
    "case",
    [
        "as the report's",
        "ratio 3, thirds",
        "uneven copies",
        "groups too",
        "groups and keys",
        "tied stays tied",
        "untied",
        "plain attention",
    ],
)
def test_grow_moments_are_those_of_the_large_models_gradients(case: str):
    args, wanted = GROWTHS[case]
    small = random_model(args)
    large = grown_model(small, wanted)
    tokens = torch.randint(50, (3, 18))
    for model in (small, large):
        logits = model(tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in small.named_parameters()}
    origins = map_tensors(args, large.model_args)
    num_compared = 0
    for name, parameter in large.named_parameters():
        origin = origins[name]
        source = gradients[origin.name]
        for power in (1, 2):
            moment = grow_moment(origin, source**power, power)
            if origin.is_new:
                assert not moment.any(), name
                continue
            expected = parameter.grad**power
            apart = (moment - expected).abs().max() / expected.abs().max()
            assert apart < 1e-5, (name, power)  # parts of the backward pass are float32's
            num_compared += 1
    assert num_compared > 80


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("copies", [2, 3, 4, 5])
def test_grow_with_noise_adds_up_exactly(dtype: torch.dtype, copies: int):
    source = (torch.randn(700, 33, dtype=torch.float64) * 0.02).to(dtype)
    source[3, 5] = 0.0
    axis = Axis(tuple(i % 33 for i in range(33 * copies)), is_read=True)
    origin = Origin("w", (Axis(tuple(range(700))), axis))
    grown = source.repeat(1, copies)
    add_paired_noise(grown, origin, "w", 0, 20.0)
    parts = grown.double().unflatten(1, (copies, 33))
    for i in range(0, copies - 1, 2):
        assert torch.equal(parts[:, i] + parts[:, i + 1], source.double() * 2)
    if copies % 2:
        assert torch.equal(parts[:, -1], source.double())
    for i in range(copies):
        for j in range(i):
            same = (parts[:, i] == parts[:, j]).double().mean()
            assert same < 0.25, (i, j)  # where bfloat16 has no room for so little noise
