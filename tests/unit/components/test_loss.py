"""The loss in chunks, beside float64's cross-entropy and z-loss of all logits at once."""

import pytest
import torch

from titan_motif.components.loss import IGNORE_INDEX, LinearCrossEntropy


def case(tokens: int, dim: int, vocab: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, dim, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=generator).mul(0.7).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    labels[1::5] = IGNORE_INDEX
    return hidden, weight, labels


def reference(hidden, weight, labels, z_loss):
    """Return cross-entropy, z-loss, and the gradients of their sum, in float64."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = hidden @ weight.t()
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    counts = labels != IGNORE_INDEX
    z = z_loss * (logits.logsumexp(-1).square() * counts).sum()
    gradients = torch.autograd.grad(cross_entropy + z, (hidden, weight))
    return cross_entropy.detach(), z.detach(), *gradients


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 33, 100])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_and_gradients_are_those_of_float64(chunk_tokens, z_loss):
    hidden, weight, labels = case(33, 24, 57, torch.float32)
    wanted = reference(hidden, weight, labels, z_loss)
    loss = LinearCrossEntropy(chunk_tokens, z_loss)(hidden, weight, labels)
    (0.25 * loss.total).backward()
    assert error(loss.cross_entropy, wanted[0]) < 1e-6
    assert loss.z_loss.item() == pytest.approx(wanted[1].item(), rel=1e-6)
    assert loss.total.item() == pytest.approx((wanted[0] + wanted[1]).item(), rel=1e-6)
    assert error(hidden.grad, 0.25 * wanted[2]) < 2e-6
    assert error(weight.grad, 0.25 * wanted[3]) < 2e-6


@pytest.mark.parametrize("chunk_tokens", [8, 64])
def test_bfloat16_is_as_near_as_the_plain_form(chunk_tokens):
    hidden, weight, labels = case(64, 48, 300, torch.bfloat16)
    wanted = reference(hidden, weight, labels, 0.0)

    plain = [x.detach().clone().requires_grad_() for x in (hidden, weight)]
    logits = (plain[0] @ plain[1].t()).float()
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    loss = LinearCrossEntropy(chunk_tokens)(hidden, weight, labels)
    loss.total.backward()
    assert error(loss.cross_entropy, wanted[0]) < 1e-3
    for mine, theirs, right in zip((hidden, weight), plain, wanted[2:], strict=True):
        assert mine.grad.dtype == torch.bfloat16
        assert error(mine.grad, right) < 1.2 * error(theirs.grad, right)


@pytest.mark.parametrize("chunk_tokens", [8, 64])
def test_the_count_of_tokens_is_not_rounded(chunk_tokens):
    count = 61_000  # in bfloat16 its inverse would be 0.4% off
    found = []
    for factor in (1.0, 1 / count):
        hidden, weight, labels = case(64, 48, 300, torch.bfloat16)
        (factor * LinearCrossEntropy(chunk_tokens)(hidden, weight, labels).total).backward()
        found.append([x.grad.double().abs().sum().item() for x in (hidden, weight)])
    for whole, part in zip(*found, strict=True):
        assert part * count == pytest.approx(whole, rel=5e-4)


def test_only_the_sum_is_differentiated_and_once():
    hidden, weight, labels = case(33, 24, 57, torch.float32)
    loss = LinearCrossEntropy(8, 1e-2)(hidden, weight, labels)
    # What is kept of a step to tell of it keeps nothing of its graph.
    assert loss.total.requires_grad
    assert not loss.cross_entropy.requires_grad
    assert not loss.z_loss.requires_grad
    loss.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="it has one backward pass"):
        loss.total.backward()


def test_many_chunks_add_up_in_float32():
    hidden, weight, labels = case(2048, 8, 16, torch.bfloat16)
    wanted = reference(hidden, weight, labels, 0.0)[3]
    LinearCrossEntropy(4)(hidden, weight, labels).total.backward()
    # 512 sums in bfloat16 would be off by 2e-2 or more.
    assert error(weight.grad, wanted) < 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_is_as_eager(dtype):
    found = []
    for backend in (None, "aot_eager"):
        hidden, weight, labels = case(40, 24, 57, dtype)
        loss_of = LinearCrossEntropy(16, 1e-3)
        if backend is not None:
            torch._dynamo.reset()
            loss_of.compile(backend)
        loss = loss_of(hidden, weight, labels)
        (0.3 * loss.total).backward()
        found.append((loss.total.detach(), hidden.grad, weight.grad))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_large_logits_do_not_overflow():
    hidden, weight, labels = case(16, 24, 57, torch.float32)
    with torch.no_grad():
        hidden.mul_(1e3)
    wanted = reference(hidden, weight, labels, 0.0)
    loss = LinearCrossEntropy(5)(hidden, weight, labels)
    loss.total.backward()
    assert error(loss.cross_entropy, wanted[0]) < 1e-5
    assert error(hidden.grad, wanted[2]) < 1e-5


def test_tokens_that_do_not_count_give_nothing():
    hidden, weight, labels = case(16, 24, 57, torch.float32)
    loss = LinearCrossEntropy(5, 1e-2)(hidden, weight, torch.full_like(labels, IGNORE_INDEX))
    loss.total.backward()
    assert loss.total.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_without_gradients_nothing_is_kept():
    hidden, weight, labels = case(16, 24, 57, torch.float32)
    loss_of = LinearCrossEntropy(5)
    loss_of.make_gradient = None  # nobody calls it
    with torch.no_grad():
        loss = loss_of(hidden, weight, labels)
    assert loss.total.grad_fn is None
    assert loss.cross_entropy.item() == pytest.approx(
        reference(hidden, weight, labels, 0.0)[0].item(), rel=1e-6
    )


def test_one_chunk_of_logits_is_held_at_a_time():
    """The largest tensor that is made is a chunk's logits, or a gradient."""
    made: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            out = function(*arguments, **(keywords or {}))
            if isinstance(out, torch.Tensor):
                made.append(out.numel())
            return out

    hidden, weight, labels = case(200, 8, 500, torch.float32)
    with Watch():
        LinearCrossEntropy(20)(hidden, weight, labels).total.backward()
    assert max(made) == 20 * 500
