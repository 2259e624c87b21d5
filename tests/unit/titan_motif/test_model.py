"""The network against plain loops written from the formulas, in float64."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

import titan_motif.device  # noqa: F401
from titan_motif import kernels
from titan_motif.model import FLAVORS, Motif2Model, Motif2ModelArgs, Motif2StateDictAdapter

RATIOS = (0, 1, 3, 4, 8)


def small_args(ratio: int, **changes) -> Motif2ModelArgs:
    """Two groups on one pair of key heads (ratio 0: six heads on two)."""
    heads = 2 * (ratio + 1) if ratio else 6
    shape = {
        "dim": 24,
        "n_layers": 2,
        "n_heads": heads,
        "n_kv_heads": 2,
        "head_dim": 6,
        "hidden_dim": 20,
        "grouped_ratio": ratio,
        "vocab_size": 31,
        "max_seq_len": 64,
        "rope_theta": 1e4,
    }
    return Motif2ModelArgs(**(shape | changes))


def small_model(ratio: int, **changes) -> Motif2Model:
    """A float64 model with every parameter drawn at random, norms and scalars too."""
    model = Motif2Model(small_args(ratio, **changes))
    model.init_weights()
    model = model.double()
    model.scalars.reset_buffers()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            parameter.add_(noise, alpha=0.3)
    return model


# ---- the reference: scalars and loops, nothing shared with the model's code


def loop_norm(x: list[float], weight: list[float], eps: float) -> list[float]:
    scale = 1 / math.sqrt(sum(value * value for value in x) / len(x) + eps)
    return [value * scale * w for value, w in zip(x, weight, strict=True)]


def loop_matvec(matrix, x: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, x, strict=True)) for row in matrix]


def loop_poly_norm(x: list[float], w: list[float], b: float, eps: float) -> list[float]:
    def power_scale(p: int) -> float:
        return 1 / math.sqrt(sum(value ** (2 * p) for value in x) / len(x) + eps)

    cubes, squares, ones = power_scale(3), power_scale(2), power_scale(1)
    return [w[0] * v**3 * cubes + w[1] * v**2 * squares + w[2] * v * ones + b for v in x]


def loop_rope(x: list[float], position: int, theta: float) -> list[float]:
    half = len(x) // 2
    turned = [0.0] * len(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        turned[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return turned


def loop_softmax_row(q: list[float], keys: list[list[float]]) -> list[float]:
    logits = [sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)) for k in keys]
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [w / sum(weights) for w in weights]


def loop_attend(
    projected: dict[str, list], position: int, query: int, key: int, value_heads: list[int]
) -> list[float]:
    """One query head at one position over its past; the values of `value_heads` side by side."""
    past = range(position + 1)
    weights = loop_softmax_row(
        projected["q"][position][query], [projected["k"][t][key] for t in past]
    )
    values = [[x for head in value_heads for x in projected["v"][t][head]] for t in past]
    return [sum(weights[t] * values[t][i] for t in past) for i in range(len(values[0]))]


def loop_model(model: Motif2Model, tokens: list[int]) -> list[list[float]]:
    """Logits of one sequence, from the formulas of the report and released layout of heads."""
    args = model.model_args
    p = {name: value.tolist() for name, value in model.named_parameters()}
    d, r = args.head_dim, args.grouped_ratio
    hidden = [list(p["tok_embeddings.weight"][token]) for token in tokens]

    for layer in range(args.n_layers):
        block, scalars = f"layers.{layer}.", f"scalars.layers.{layer}."
        projected: dict[str, list] = {"q": [], "k": [], "v": []}
        for position, h in enumerate(hidden):
            x = loop_norm(h, p[block + "attention_norm.weight"], args.norm_eps)
            for kind, count in (
                ("q", args.n_heads),
                ("k", args.n_kv_heads),
                ("v", args.n_kv_heads),
            ):
                flat = loop_matvec(p[block + f"attention.{kind}_proj.weight"], x)
                heads = [flat[i * d : (i + 1) * d] for i in range(count)]
                if kind != "v":
                    heads = [loop_rope(head, position, args.rope_theta) for head in heads]
                projected[kind].append(heads)
        if r:
            lam_init = 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))
            q1, k1, q2, k2 = (p[scalars + f"lambda_{name}"] for name in ("q1", "k1", "q2", "k2"))
            lam = (
                math.exp(sum(a * b for a, b in zip(q1, k1, strict=True)))
                - math.exp(sum(a * b for a, b in zip(q2, k2, strict=True)))
                + lam_init
            )
        for position in range(len(hidden)):
            attend = partial(loop_attend, projected, position)
            out: list[float] = []
            if r == 0:
                for query in range(args.n_heads):
                    key = query // (args.n_heads // args.n_kv_heads)
                    out += attend(query, key, [key])
            else:
                groups = args.n_heads // (r + 1)
                for group in range(groups):
                    pair = group // (groups // (args.n_kv_heads // 2))
                    values = [2 * pair, 2 * pair + 1]
                    noise = attend(group * (r + 1) + r, 2 * pair + 1, values)
                    for s in range(r):
                        signal = attend(group * (r + 1) + s, 2 * pair, values)
                        head = [a - lam * b for a, b in zip(signal, noise, strict=True)]
                        weight = p[block + "attention.head_norm.weight"]
                        normed = loop_norm(head, weight, args.attn_norm_eps)
                        out += [value * (1 - lam_init) for value in normed]
            update = loop_matvec(p[block + "attention.o_proj.weight"], out)
            hidden[position] = [a + b for a, b in zip(hidden[position], update, strict=True)]
        for position, h in enumerate(hidden):
            x = loop_norm(h, p[block + "ffn_norm.weight"], args.norm_eps)
            gate = loop_poly_norm(
                loop_matvec(p[block + "feed_forward.gate_proj.weight"], x),
                p[scalars + "poly_weight"],
                p[scalars + "poly_bias"][0],
                args.norm_eps,
            )
            up = loop_matvec(p[block + "feed_forward.up_proj.weight"], x)
            product = [a * b for a, b in zip(gate, up, strict=True)]
            update = loop_matvec(p[block + "feed_forward.down_proj.weight"], product)
            hidden[position] = [a + b for a, b in zip(h, update, strict=True)]

    unembed = p["tok_embeddings.weight"] if args.tie_embeddings else p["output.weight"]
    return [loop_matvec(unembed, loop_norm(h, p["norm.weight"], args.norm_eps)) for h in hidden]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("tied", [False, True])
def test_forward_equals_the_loops(ratio: int, tied: bool):
    model = small_model(ratio, tie_embeddings=tied)
    tokens = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(ratio))
    expected = torch.tensor(
        [loop_model(model, row) for row in tokens.tolist()], dtype=torch.float64
    )
    difference = (model(tokens) - expected).norm() / expected.norm()
    assert difference < 1e-10


@pytest.mark.parametrize("ratio", RATIOS[1:])
def test_differential_attention_groups_that_share_a_pair(ratio: int):
    """Four groups on two pairs: each pair serves two neighbouring groups."""
    model = small_model(ratio, n_heads=4 * (ratio + 1), n_kv_heads=4, n_layers=1)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    expected = torch.tensor([loop_model(model, tokens[0].tolist())], dtype=torch.float64)
    assert (model(tokens) - expected).norm() / expected.norm() < 1e-10


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("ratio", RATIOS[1:])
def test_differential_attention_gradcheck(ratio: int):
    q, k, v = draw(1, 4, ratio + 1, 4), draw(1, 4, 2, 4, seed=1), draw(1, 4, 2, 4, seed=2)
    lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def apply(*tensors):
        return kernels.grouped_differential_attention(*tensors, ratio)

    assert gradcheck(apply, (q, k, v, lam))


def test_poly_norm_gradcheck():
    x, up, weight, bias = draw(3, 7), draw(3, 7, seed=1), draw(3, seed=2), draw(1, seed=3)
    assert gradcheck(kernels.poly_norm, (x, weight, bias))
    assert gradcheck(kernels.poly_norm_mul, (x, up, weight, bias))


@pytest.mark.parametrize("ratio", [0, 4])
def test_every_parameter_of_the_model_gets_its_numerical_gradient(ratio: int):
    model = small_model(ratio)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
    weights = draw(1, 6, 31, seed=5).detach()

    def objective() -> torch.Tensor:
        return (model(tokens) * weights).sum()

    objective().backward()
    for name, parameter in model.named_parameters():
        direction = torch.empty_like(parameter).normal_(generator=torch.Generator().manual_seed(1))
        step = 1e-6
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = objective()
            parameter.sub_(direction, alpha=2 * step)
            below = objective()
            parameter.add_(direction, alpha=step)
        numerical = ((above - below) / (2 * step)).item()
        analytical = (parameter.grad * direction).sum().item()
        assert numerical == pytest.approx(analytical, rel=1e-5, abs=1e-5), name


# ---- the released models


@pytest.mark.parametrize(("flavor", "count"), [("12_7b", 12_703_860_896), ("2_6b", 2_597_218_432)])
def test_parameter_count_is_the_released_one(flavor: str, count: int):
    with torch.device("meta"):
        model = Motif2Model(FLAVORS[flavor])
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert FLAVORS[flavor].get_nparams_and_flops(model, 4096)[0] == count


def test_export_names_and_shapes_are_the_released_ones():
    args = FLAVORS["12_7b"]
    with torch.device("meta"):
        model = Motif2Model(args)
    adapter = Motif2StateDictAdapter(args, None)
    released = {name: tuple(t.shape) for name, t in adapter.to_hf(model.state_dict()).items()}
    expected = {
        "model.embed_tokens.weight": (219_520, 4096),
        "model.norm.weight": (4096,),
        "lm_head.weight": (219_520, 4096),
    }
    for i in range(40):
        layer = f"model.layers.{i}."
        expected |= {
            layer + "input_layernorm.weight": (4096,),
            layer + "post_attention_layernorm.weight": (4096,),
            layer + "self_attn.q_proj.weight": (5120, 4096),
            layer + "self_attn.k_proj.weight": (2048, 4096),
            layer + "self_attn.v_proj.weight": (2048, 4096),
            layer + "self_attn.o_proj.weight": (4096, 8192),
            layer + "self_attn.subln.weight": (256,),
            layer + "mlp.gate_proj.weight": (16_384, 4096),
            layer + "mlp.up_proj.weight": (16_384, 4096),
            layer + "mlp.down_proj.weight": (4096, 16_384),
            layer + "mlp.act_fn.weight": (3,),
            layer + "mlp.act_fn.bias": (1,),
        }
        for vector in ("q1", "k1", "q2", "k2"):
            expected[layer + f"self_attn.lambda_{vector}"] = (128,)
    assert len(expected) == 643
    assert released == expected


def test_adapter_round_trip_and_unknown_names():
    model = small_model(4)
    adapter = Motif2StateDictAdapter(model.model_args, None)
    state = model.state_dict()
    back = adapter.from_hf(adapter.to_hf(state))
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)
    with pytest.raises(ValueError, match="rotary"):
        adapter.from_hf({"model.layers.0.self_attn.rotary": torch.ones(1)})


def test_scalars_stay_float32_when_everything_else_is_bfloat16():
    model = Motif2Model(small_args(4))
    model.init_weights()
    for block in model.layers.values():
        block.bfloat16()
    for module in (model.tok_embeddings, model.norm, model.output):
        module.bfloat16()
    assert all(tensor.dtype == torch.float32 for tensor in model.scalars())
    assert model(torch.tensor([[1, 2, 3]])).dtype == torch.bfloat16


def test_lam_init_is_the_released_formula_and_can_be_given():
    model = Motif2Model(small_args(4))
    model.init_weights()
    assert model.scalars.lam_init.tolist() == pytest.approx([-0.00991528, 0.2], abs=1e-6)
    given = Motif2Model(small_args(4, lam_init=(0.25, 0.5)))
    given.init_weights()
    assert given.scalars.lam_init.tolist() == [0.25, 0.5]


def test_every_operator_of_the_model_takes_the_chosen_path(monkeypatch):
    from titan_motif.components import operators

    taken = []

    def remember(name, operator, *arguments):
        taken.append((name, arguments[-1]))
        return operator(*arguments)

    for name in ("rms_norm", "add_rms_norm", "poly_norm_mul"):
        call = partial(remember, name, getattr(kernels, name))
        monkeypatch.setattr(operators.kernels, name, call)
    model = Motif2Model(small_args(4, kernels="torch"))
    model.init_weights()
    model(torch.tensor([[1, 2, 3]]))
    layer = ["rms_norm", "rms_norm", "add_rms_norm", "poly_norm_mul"]
    assert taken == [(name, "torch") for name in [*layer, *layer, "rms_norm"]]


def test_standard_and_gda_100m_flavors_have_equal_size():
    counts = []
    for flavor in ("100m_standard", "100m_gda"):
        with torch.device("meta"):
            model = Motif2Model(FLAVORS[flavor])
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert counts[0] == pytest.approx(1e8, rel=0.05)
    assert counts[1] == pytest.approx(counts[0], rel=1e-3)


# ---- packed documents


@pytest.mark.parametrize("ratio", [0, 1, 4])
def test_packed_documents_are_as_if_each_stood_alone(ratio: int):
    """With positions that restart; without, rotary positions are relative: the same again."""
    model = small_model(ratio)
    lengths = (1, 5, 2, 4)
    tokens = torch.randint(0, 31, (2, sum(lengths)), generator=torch.Generator().manual_seed(1))
    ids = torch.repeat_interleave(torch.tensor([7, 3, 7, 9]), torch.tensor(lengths)).expand(2, -1)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
    packed = model(tokens, positions=positions, document_ids=ids)
    assert (packed - alone).norm() / alone.norm() < 1e-10
    counted_on = model(tokens, document_ids=ids)
    assert (counted_on - alone).norm() / alone.norm() < 1e-10
    assert (model(tokens) - alone).norm() / alone.norm() > 1e-2


def test_the_chosen_path_of_attention_is_handed_down(monkeypatch):
    asked = []

    def remember(*arguments, **options):
        asked.append(options["implementation"])
        return call(*arguments, **options)

    call = kernels.grouped_differential_attention
    monkeypatch.setattr(kernels, "grouped_differential_attention", remember)
    model = Motif2Model(small_args(4, attention="sdpa"))
    model.init_weights()
    model(torch.tensor([[1, 2, 3]]))
    assert asked == ["sdpa", "sdpa"]
