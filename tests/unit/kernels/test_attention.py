"""Grouped differential attention: the Triton path against float64 and SDPA, and as an operator.

Triton's interpreter multiplies the bits of bfloat16 as if they were integers, and takes a second
for what a GPU does in no time: it gets few shapes, in float16.
"""

import importlib
import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from oracle import (
    Launches,
    attention_maps,
    causal_logits,
    differential_attention,
    draw,
    packed_ids,
    relative_error,
    with_gradients,
)
from torch._dynamo.backends.registry import lookup_backend

from titan_motif import kernels
from titan_motif.kernels import attention_reference, documents_of
from titan_motif.kernels.launch import IS_INTERPRETED

forward_module = importlib.import_module("titan_motif.kernels.attention_forward")
backward_module = importlib.import_module("titan_motif.kernels.attention_backward")

BF16, FP16 = torch.bfloat16, torch.float16
LAM = 0.4375
"""A number of few bits: SDPA's path rounds lam, and that error would be its largest."""


class Case(NamedTuple):
    """Sizes of one call."""

    dtype: torch.dtype
    batch: int
    seq: int
    num_heads: int
    num_key_heads: int
    ratio: int
    head_dim: int

    def __str__(self) -> str:
        return "-".join(str(size).removeprefix("torch.") for size in self)


CASES = [
    Case(FP16, 2, 1, 4, 2, 3, 16),
    Case(FP16, 2, 5, 4, 2, 1, 16),
    Case(FP16, 2, 63, 8, 4, 3, 16),
    Case(FP16, 1, 129, 8, 4, 1, 16),  # two groups share a pair
    Case(FP16, 1, 70, 9, 2, 8, 16),
    Case(FP16, 1, 70, 10, 4, 4, 32),
    Case(FP16, 2, 200, 6, 2, 2, 16),  # so do these
    Case(FP16, 3, 300, 2, 2, 1, 16),  # long enough for tiles without a mask between others
    Case(FP16, 3, 130, 6, 6, 1, 16),  # more pairs of sequences than begin together
    Case(FP16, 1, 140, 2, 2, 1, 64),
    Case(FP16, 1, 140, 2, 2, 1, 128),
]
NATIVE_CASES = [
    Case(BF16, 2 if seq < 1000 else 1, seq, 2 * (ratio + 1), 4, ratio, 128)
    for ratio in (1, 3, 4, 8)
    for seq in (1, 5, 63, 129, 200, 1000, 4100)
]
NATIVE_CASES += [
    Case(dtype, 2, 300, 10, 4, 4, head_dim) for dtype in (BF16, FP16) for head_dim in (16, 32, 64)
]
NATIVE_CASES += [
    Case(BF16, 2, 257, 8, 4, 1, 128),
    Case(BF16, 2, 512, 20, 2, 4, 64),
    Case(FP16, 1, 4100, 10, 4, 4, 128),
    Case(BF16, 3, 2048, 8, 4, 3, 128),
]
SMALL = Case(FP16, 2, 20, 4, 4, 1, 16)

triton_attention = partial(kernels.grouped_differential_attention, implementation="triton")
sdpa_attention = partial(kernels.grouped_differential_attention, implementation="sdpa")


def inputs(case: Case, device: str, scale: float = 1.0):
    """q, k, v, lam, and the output's gradient; normal, but for lam."""
    dtype, batch, seq, num_heads, num_key_heads, ratio, head_dim = case
    make = partial(draw, device=device)
    q = make(batch, seq, num_heads, head_dim, seed=1) - 0.5
    k = make(batch, seq, num_key_heads, head_dim, seed=2) - 0.5
    v = make(batch, seq, num_key_heads, head_dim, seed=3) - 0.5
    num_signal_heads = num_heads // (ratio + 1) * ratio
    dout = make(batch, seq, num_signal_heads, 2 * head_dim, seed=4) - 0.5
    q, k, v, dout = (x.to(dtype) for x in (scale * q, k, v, dout))
    return (q, k, v, torch.tensor(LAM, device=device)), dout


def call(attention, case: Case, ids=None, **options):
    """`attention` as a function of its tensors alone."""
    return lambda *tensors: attention(*tensors, case.ratio, ids, **options)


@pytest.fixture(params=["triton", "sdpa"])
def path(request):
    """The attention of an implementation, and a device where it gives the same bits each time."""
    if request.param == "triton":
        return triton_attention, request.getfixturevalue("device")
    return sdpa_attention, "cpu"


def assert_errors_within(found, peer, exact, terms_of_dlam, dtype, factor: float) -> None:
    """The error of the output and of each gradient is at most `factor` times that of SDPA.

    Or one rounding of the largest gradient: with a token or two the exact gradients of q and k
    vanish, and what is left of dP - delta is the rounding of the output that delta is made of.
    With more tokens SDPA's own error is about as large, and the factor decides.

    lam's gradient is one number, a sum of terms that cancel, so an error relative to it says
    nothing, and one relative to the sum of their magnitudes could not fail. What rounding does to
    each term is independent: 4 roundings of their norm are allowed, the size that the sum has.
    """
    unit = torch.finfo(dtype).eps / 2
    largest = max(gradient.norm() for gradient in exact[1:4])
    floors = {"out": 0.0, "q": unit * largest, "k": unit * largest, "v": unit * largest}
    floors["lam"] = 4 * unit * terms_of_dlam.norm()
    for name, tensor, other, wide in zip(floors, found, peer, exact, strict=True):
        assert tensor.shape == wide.shape
        assert tensor.dtype == (torch.float32 if name == "lam" else dtype)
        error, allowed = ((x.double() - wide).norm() for x in (tensor, other))
        allowed = max(factor * allowed, floors[name])
        assert error <= allowed, f"{name}: {error:.3e}, and {allowed:.3e} is allowed"


# ---- values


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("case", CASES + NATIVE_CASES, ids=str)
def test_differential_attention_values_and_gradients(device, case: Case, is_packed: bool):
    # Three sequences are there for the ways in which they are packed.
    if IS_INTERPRETED and (case in NATIVE_CASES or (case.batch == 3 and not is_packed)):
        pytest.skip("for a GPU")
    tensors, dout = inputs(case, device)
    ids = packed_ids(case.batch, case.seq, device) if is_packed else None
    assert_contract(case, tensors, dout, ids)


def assert_contract(case: Case, tensors, dout, ids, factor: float = 1.5) -> None:
    found = with_gradients(call(triton_attention, case, ids), tensors, [dout])
    peer = with_gradients(call(sdpa_attention, case, ids), tensors, [dout])
    wide = [tensor.double() for tensor in tensors]
    exact = with_gradients(call(differential_attention, case, ids), wide, [dout.double()])
    _, noise = attention_maps(*wide[:3], case.ratio, ids)
    terms = dout.double().unflatten(2, (-1, case.ratio)) * noise
    assert torch.isclose(-terms.sum(), exact[4])
    assert_errors_within(found, peer, exact, terms, case.dtype, factor)


@pytest.mark.parametrize(
    ("scale", "factor"), [(0.0, 1.5), (10.0, 1.5), (40.0, 2.0)], ids=["flat", "peaked", "one-hot"]
)
def test_differential_attention_of_flat_and_of_peaked_maps(device, scale: float, factor: float):
    """Logits of zero, of tens, and of hundreds, where exp2 of most differences vanishes.

    Of maps that are all but one-hot nothing but rounding is left in dP - delta, and the kernels'
    signal maps are a sum of two rounded tensors, not one: hence 2 for the last.
    """
    case = Case(FP16, 1, 140, 4, 2, 3, 16)
    tensors, dout = inputs(case, device, scale)
    assert_contract(case, tensors, dout, packed_ids(1, 140, device), factor)


def test_differential_attention_lets_lam_keep_its_precision(device):
    """A float32 lam is not rounded to the activations' dtype, in neither direction."""
    (q, k, v, _), dout = inputs(SMALL, device)

    def at(attention, lam: float, *tensors):
        tensors = (*tensors, torch.tensor(lam, device=device))
        return with_gradients(call(attention, SMALL), tensors, [dout.to(tensors[0].dtype)])[:4]

    lam = 1024.375  # float16 has 1024 and 1025
    found = at(triton_attention, lam, q, k, v)
    wide = [tensor.double() for tensor in (q, k, v)]
    exact, without, with_one = (at(differential_attention, x, *wide) for x in (lam, 0.0, 1.0))
    # All are linear in lam. Rounding it would show as 0.375 of what lam multiplies.
    for tensor, expected, zero, one in zip(found, exact, without, with_one, strict=True):
        slope = one - zero
        along = ((tensor.double() - expected) * slope).sum() / slope.square().sum()
        assert along.abs() < 0.1, along


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("ratio", [1, 3, 4, 8])
def test_differential_attention_of_sdpa_is_exact_in_float64(ratio: int, is_packed: bool):
    """The peer is held to the formula itself; and ids do what the bounds made of them do."""
    case = Case(torch.float64, 2, 67, 4 * (ratio + 1), 4, ratio, 16)
    tensors, dout = inputs(case, "cpu")
    tensors = [tensor.double() for tensor in tensors]
    ids = packed_ids(2, 67, "cpu") if is_packed else None
    found = with_gradients(call(sdpa_attention, case, ids), tensors, [dout])
    exact = with_gradients(call(differential_attention, case, ids), tensors, [dout])
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(found, exact, strict=True))
    documents = None if ids is None else documents_of(ids)
    assert torch.equal(sdpa_attention(*tensors, ratio, documents), found[0])


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("num_key_heads", [6, 2])
def test_plain_attention(num_key_heads: int, is_packed: bool):
    q = draw(2, 67, 6, 16, device="cpu", dtype=torch.float64, seed=1)
    k = draw(2, 67, num_key_heads, 16, device="cpu", dtype=torch.float64, seed=2)
    v = draw(2, 67, num_key_heads, 16, device="cpu", dtype=torch.float64, seed=3)
    ids = packed_ids(2, 67, "cpu") if is_packed else None
    logits = causal_logits(q, k, 0, ids)
    values = v.repeat_interleave(6 // num_key_heads, dim=2)
    exact = torch.einsum("bhqk,bkhw->bqhw", logits.softmax(-1), values)
    assert relative_error(kernels.attention(q, k, v, ids), exact) < 1e-12
    out, statistics = kernels.attention(q, k, v, ids, with_statistics=True)
    assert relative_error(out, exact) < 1e-12
    assert relative_error(statistics.max_logits, logits.amax((0, 2, 3))) < 1e-6
    assert statistics.noise_over_signal == 0


# ---- statistics

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-6, FP16: 1e-3, BF16: 1e-2}
"""Relative; statistics are float32."""


def assert_statistics(attention, case: Case, device: str, is_packed: bool) -> None:
    (q, k, v, lam), _ = inputs(case, device)
    ids = packed_ids(case.batch, case.seq, device) if is_packed else None
    q = q.requires_grad_()
    out, statistics = attention(q, k, v, lam, case.ratio, ids, with_statistics=True)
    assert torch.equal(out, attention(q, k, v, lam, case.ratio, ids))
    assert out.requires_grad
    wide = [tensor.detach().double() for tensor in (q, k, v, lam)]
    signal, noise = attention_maps(*wide[:3], case.ratio, ids)
    noise = LAM * noise.expand_as(signal)
    expected = (
        causal_logits(*wide[:2], case.ratio, ids).amax((0, 2, 3)),
        noise.norm() / signal.norm(),
    )
    for found, exact in zip(statistics, expected, strict=True):
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert found.shape == exact.shape
        error = (found.double() - exact).abs()
        assert (error <= TOLERANCES[case.dtype] * exact.abs()).all(), (found, exact)


STATISTICS_CASES = [Case(FP16, 2, 140, 5, 2, 4, 16), Case(FP16, 1, 65, 8, 4, 1, 16)]
NATIVE_STATISTICS_CASES = [Case(BF16, 2, 1000, 10, 4, 4, 128), Case(FP16, 1, 4100, 9, 2, 8, 64)]


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("case", STATISTICS_CASES + NATIVE_STATISTICS_CASES, ids=str)
def test_differential_attention_maxima_and_noise(device, case: Case, is_packed: bool):
    if IS_INTERPRETED and case in NATIVE_STATISTICS_CASES:
        pytest.skip("a shape for a GPU")
    assert_statistics(triton_attention, case, device, is_packed)


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_differential_attention_maxima_and_noise_of_sdpa(dtype, is_packed: bool):
    if IS_INTERPRETED and dtype == BF16:
        pytest.skip("Triton's interpreter multiplies no bfloat16")
    for case in STATISTICS_CASES:
        assert_statistics(sdpa_attention, case._replace(dtype=dtype), "cpu", is_packed)


def test_differential_attention_maxima_are_of_keys_that_are_seen(path):
    """Seen logits are all negative; later keys, other documents and padding have larger ones."""
    attention, device = path
    case = Case(FP16, 2, 70, 4, 2, 3, 16)
    (q, k, v, lam), _ = inputs(case, device)
    q, k = q.abs() + 0.1, -k.abs() - 0.1
    q[..., 0] = k[..., 0] = 0.0
    q[0, (5, 40), :, 0] = k[0, 10, :, 0] = 20.0
    ids = torch.zeros(2, 70, dtype=torch.long, device=device)
    ids[:, 20:] = 1
    found = attention(q, k, v, lam, 3, ids, with_statistics=True)[1].max_logits
    exact = causal_logits(q.double(), k.double(), 3, ids).amax((0, 2, 3))
    assert (found < 0).all()
    assert ((found - exact).abs() <= 1e-3 * exact.abs()).all()
    assert (attention(q, k, v, lam, 3, with_statistics=True)[1].max_logits > 50).all()


# ---- documents


def test_differential_attention_never_crosses_documents(path):
    """Other values in one document leave every bit of the others' as it was."""
    attention, device = path
    case = Case(FP16, 2, 150, 2, 2, 1, 16)
    tensors, dout = inputs(case, device)
    ids = torch.zeros(2, 150, dtype=torch.long, device=device)
    ids[0, 40:100], ids[0, 128:] = 1, 3  # the middle one ends within a tile
    changed = torch.zeros(2, 150, dtype=torch.bool, device=device)
    changed[0, 40:100] = True
    others = [x.clone() for x in (*tensors[:3], dout)]
    for x in others:
        x[changed] = 3 * x[changed].flip(0) + 1
    lam = tensors[3]
    first = with_gradients(call(attention, case, ids), tensors, [dout])
    second = with_gradients(call(attention, case, ids), (*others[:3], lam), others[3:])
    for a, b in zip(first[:4], second[:4], strict=True):  # out, dq, dk, dv; lam is everybody's
        is_other = (a != b).flatten(2).any(dim=-1)  # (batch, seq)
        assert not is_other[~changed].any()
        assert is_other[changed][1:].all()  # a document's first token has no gradient of q
    whole = attention(*tensors, case.ratio)
    assert not torch.equal(whole[0, 40:], first[0][0, 40:])
    assert torch.equal(attention(*tensors, case.ratio, documents_of(ids)), first[0])


# ---- as an operator of PyTorch


def test_differential_attention_gives_the_same_bits_on_each_run(device):
    case = SMALL if IS_INTERPRETED else Case(BF16, 2, 1000, 10, 4, 4, 128)
    tensors, dout = inputs(case, device)
    attention = call(triton_attention, case, packed_ids(case.batch, case.seq, device))
    first = with_gradients(attention, tensors, [dout])
    for _ in range(1 if IS_INTERPRETED else 5):
        again = with_gradients(attention, tensors, [dout])
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_differential_attention_of_views(path):
    """q, k and v are parts of one tensor; the output's gradient is a view, or one number."""
    attention, device = path
    (q, k, v, lam), dout = inputs(SMALL, device)
    attention = call(attention, SMALL, packed_ids(2, 20, device))
    expected = with_gradients(attention, (q, k, v, lam), [dout])
    together = torch.cat((q, k, v), dim=2).transpose(1, 2).contiguous().transpose(1, 2)
    parts = together.split([4, 4, 4], dim=2)
    turned = dout.mT.contiguous().mT
    assert not any(x.is_contiguous() for x in (*parts, turned))
    found = with_gradients(attention, (*parts, lam), [turned])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    one = torch.ones((), dtype=dout.dtype, device=device)
    expected = with_gradients(attention, (q, k, v, lam), [one.expand_as(dout).clone()])[1:]
    found = with_gradients(lambda *t: attention(*t).sum(), (*parts, lam), [one])[1:]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)], ids=str)
def test_differential_attention_gradients_of_some_inputs(path, wanted):
    attention, device = path
    case = Case(FP16, 1, 9, 4, 2, 1, 16)
    tensors, dout = inputs(case, device)
    attention = call(attention, case)
    expected = with_gradients(attention, tensors, [dout])[1:]
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index in wanted)
    out = attention(*tensors)
    found = torch.autograd.grad(out, [tensors[index] for index in wanted], dout)
    for index, gradient in zip(wanted, found, strict=True):
        assert torch.equal(gradient, expected[index])
    with torch.no_grad():
        assert not attention(*tensors).requires_grad


@pytest.mark.parametrize(("batch", "seq"), [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
def test_differential_attention_of_no_tokens(path, batch: int, seq: int, is_packed: bool):
    attention, device = path
    case = SMALL._replace(batch=batch, seq=seq)
    tensors, dout = inputs(case, device)
    ids = torch.zeros(batch, seq, dtype=torch.long, device=device) if is_packed else None
    out, dq, dk, dv, dlam = with_gradients(call(attention, case, ids), tensors, [dout])
    assert out.shape == (batch, seq, 2, 32)
    assert dq.shape == tensors[0].shape
    assert dk.shape == dv.shape == tensors[1].shape
    assert dlam == 0
    _, statistics = attention(*tensors, case.ratio, ids, with_statistics=True)
    assert statistics.max_logits.tolist() == [-math.inf] * 4
    assert statistics.noise_over_signal == 0


def test_differential_attention_kernels_are_launched(device, monkeypatch):
    launches = [Launches(monkeypatch, forward_module, "_attention_forward_kernel")]
    names = ("_attention_prepare_kernel", "_attention_queries_kernel", "_attention_keys_kernel")
    launches += [Launches(monkeypatch, backward_module, name) for name in names]
    case = Case(FP16, 1, 9, 4, 2, 1, 16)
    tensors, dout = inputs(case, device)
    with_gradients(call(triton_attention, case), tensors, [dout])
    counts = [kernel.count for kernel in launches]
    assert all(counts)
    with_gradients(call(sdpa_attention, case), tensors, [dout])
    assert [kernel.count for kernel in launches] == counts
    with_gradients(call(kernels.grouped_differential_attention, case), tensors, [dout])
    times = 2 if kernels.fastest_attention(case.dtype, 16, tensors[0].device) == "triton" else 1
    assert [kernel.count for kernel in launches] == [times * count for count in counts]


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_differential_attention_asks_for_cudnn_when_compiled(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    torch._dynamo.reset()

    @partial(torch.compile, fullgraph=True, backend="eager")
    def ask(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if attention_reference._prefers_cudnn(x.device) else x

    assert ask(torch.zeros(1)).item() == (capability == (9, 0))


def test_differential_attention_operators_pass_opcheck(device):
    (q, k, v, lam), dout = inputs(Case(FP16, 2, 5, 2, 2, 1, 16), device)
    operators = torch.ops.titan_motif
    leaves = [x.clone().requires_grad_() for x in (q, k, v, lam)]
    documents = documents_of(packed_ids(2, 5, device))
    torch.library.opcheck(operators.differential_attention, (*leaves, *documents, 1))
    torch.library.opcheck(operators.differential_attention, (q, k, v, lam, None, None, 1))
    for bounds in ((None, None), documents):
        arguments = (q, k, v, lam, *bounds)
        out, noise, logsumexp, _, _ = operators.differential_attention(*arguments, 1)
        saved = (dout, *arguments, out, noise, logsumexp, 1)
        torch.library.opcheck(operators.differential_attention_backward, saved)


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
def test_differential_attention_is_whole_when_compiled(device, is_packed: bool):
    targets = []

    def backend(graph, example_inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return lookup_backend("aot_eager")(graph, example_inputs)

    case = Case(FP16, 1, 9, 4, 2, 1, 16)
    tensors, dout = inputs(case, device)
    ids = packed_ids(1, 9, device) if is_packed else None
    attention = call(triton_attention, case, ids, with_statistics=True)

    def doubled(*tensors):
        out, statistics = attention(*tensors)
        return 2 * out, statistics.max_logits, statistics.noise_over_signal

    compiled = torch.compile(doubled, fullgraph=True, backend=backend)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    results = [doubled(*leaves), compiled(*leaves)]
    assert any("titan_motif.differential_attention" in target for target in targets)
    gradients = [torch.autograd.grad(result[0], leaves, dout) for result in results]
    for expected, found in [*zip(*results, strict=True), *zip(*gradients, strict=True)]:
        assert torch.equal(expected, found)
