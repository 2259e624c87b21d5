"""The loss in chunks and products in FP8 on a GPU, beside float64."""

import pytest
import torch
from torch import Tensor, nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_float8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
    reason="needs a GPU of compute capability 8.9",
)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    drawn = torch.randn(shape, device="cuda", generator=generator)
    return drawn.mul(scale).bfloat16().requires_grad_()


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("backend", [None, "inductor"])
@pytest.mark.parametrize("chunk_tokens", [128, 384, 1024])
def test_the_loss_is_as_near_to_float64_as_the_plain_form(backend, chunk_tokens):
    from titan_motif.components.loss import IGNORE_INDEX, LinearCrossEntropy

    tokens, dim, vocab, z_weight = 1000, 256, 5000, 1e-2
    hidden, weight = draw(tokens, dim, seed=1), draw(vocab, dim, seed=2, scale=0.1)
    labels = torch.randint(0, vocab, (tokens,), device="cuda")
    labels[1::7] = IGNORE_INDEX

    def plain(dtype: torch.dtype) -> list[Tensor]:
        a, b = (x.detach().to(dtype).requires_grad_() for x in (hidden, weight))
        logits = a @ b.t()
        logits = logits if dtype == torch.float64 else logits.float()
        cross_entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        z_loss = z_weight * (logits.logsumexp(-1).square() * (labels != IGNORE_INDEX)).sum()
        return [cross_entropy, z_loss, *torch.autograd.grad(cross_entropy + z_loss, (a, b))]

    loss_of = LinearCrossEntropy(chunk_tokens, z_weight)
    if backend is not None:
        torch._dynamo.reset()
        loss_of.compile(backend)
    loss = loss_of(hidden, weight, labels)
    found = [loss.cross_entropy, loss.z_loss, *torch.autograd.grad(loss.total, (hidden, weight))]
    exact, usual = plain(torch.float64), plain(torch.bfloat16)
    for mine, right in zip(found[:2], exact[:2], strict=True):
        assert error(mine, right) < 1e-3
    for mine, theirs, right in zip(found[2:], usual[2:], exact[2:], strict=True):
        assert mine.dtype == torch.bfloat16
        assert error(mine, right) < 1.2 * error(theirs, right)


@needs_float8
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("recipe", ["rowwise_with_gw_hp", "rowwise", "tensorwise"])
def test_products_in_float8_are_as_near_to_float64_as_emulated_ones(recipe, is_compiled):
    """With rows of unlike sizes, which tell one scale a row from one scale a tensor."""
    from titan_motif.components.float8 import convert_to_float8

    tokens, width, out = 272, 512, 1040
    x, gradient = draw(tokens, width, seed=1), draw(tokens, out, seed=2).detach()
    weight = draw(out, width, seed=3, scale=0.05).detach()
    with torch.no_grad():
        x[::2] *= 1e-5

    def passes(emulate: bool) -> list[Tensor]:
        model = nn.ModuleDict({"proj": nn.Linear(width, out, bias=False)}).cuda().bfloat16()
        model["proj"].weight = nn.Parameter(weight.clone())
        convert_to_float8(model, recipe, emulate=emulate)
        layer = model["proj"]
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, dynamic=False) if is_compiled else layer
        y = compiled(x)
        return [y, *torch.autograd.grad(y, (x, layer.weight), gradient)]

    exact = [
        x.double() @ weight.double().t(),
        gradient.double() @ weight.double(),
        gradient.double().t() @ x.double(),
    ]
    native, emulated = passes(False), passes(True)
    for mine, theirs, right in zip(native, emulated, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert error(mine, right) < 1.1 * error(theirs, right)
        assert error(mine, right) < 0.06
    is_exact = error(native[2], exact[2]) < 5e-3
    assert is_exact == (recipe == "rowwise_with_gw_hp")
    small_rows = error(native[0][::2], exact[0][::2])
    assert (small_rows < 0.06) == (recipe != "tensorwise")
