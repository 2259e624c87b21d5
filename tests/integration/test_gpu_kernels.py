"""The kernels inside the model, on a GPU: a compiled block of the 12.7B model's width."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def block_step(
    compiled: bool, kernels: str, attention: str, is_packed: bool, dtype=torch.bfloat16
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Output and gradients of one block with weights of bfloat16, what it saw of attention, and the
    operators of the compiled graph. Its sequence is of three documents if it is packed."""
    import dataclasses

    import titan_motif.device  # noqa: F401

    # isort: split
    from titan_motif.model import FLAVORS, Motif2Model

    torch._dynamo.reset()
    torch.manual_seed(0)
    args = dataclasses.replace(
        FLAVORS["12_7b"], n_layers=1, vocab_size=256, kernels=kernels, attention=attention
    )
    with torch.device("cuda"):
        model = Motif2Model(args)
    model.init_weights()
    for part in (model.layers, model.tok_embeddings, model.norm, model.output):
        part.bfloat16().to(dtype)
    if dtype == torch.float64:
        model.double()
    operators: list[str] = []
    if compiled:
        from torch._dynamo.backends.registry import lookup_backend

        def backend(graph, example_inputs):
            operators.extend(str(node.target) for node in graph.graph.nodes)
            return lookup_backend("inductor")(graph, example_inputs)

        model.layers["0"] = torch.compile(model.layers["0"], backend=backend, fullgraph=True)
    model.attention_record.is_recording = True
    tokens = torch.randint(0, 256, (1, 1025), device="cuda")
    ids = torch.arange(1024, device="cuda")[None] // 400 if is_packed else None
    logits = model(tokens[:, :-1], document_ids=ids).flatten(0, 1)
    logits = logits.to(torch.promote_types(dtype, torch.float32))
    torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
    found = {"logits": logits.detach(), "maxima": model.attention_record.maxima.clone()}
    for name, parameter in model.named_parameters():
        found[name.replace("_orig_mod.", "")] = parameter.grad
    return found, operators


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("path", ["triton", "sdpa"])
def test_a_block_is_as_near_to_float64_as_plain_pytorch(path, compiled: bool, is_packed: bool):
    exact, _ = block_step(False, "torch", "sdpa", is_packed, torch.float64)
    plain, _ = block_step(False, "torch", "sdpa", is_packed)
    found, operators = block_step(
        compiled, "triton" if path == "triton" else "torch", path, is_packed
    )
    assert found.keys() == exact.keys()
    for name, tensor in exact.items():
        error, plain_error = (
            ((x[name] - tensor).double().norm() / tensor.double().norm()).item()
            for x in (found, plain)
        )
        # Behind each of the scalars stands one number, in which millions of either sign all but
        # cancel: its error is one draw, not a mean of many.
        allowed = 0.05 if name.startswith("scalars.") else 1.25 * plain_error + 1e-4
        assert error < allowed, (name, plain_error)
    if compiled and path == "triton":
        names = ("poly_norm_mul", "add_rms_norm", "rms_norm", "differential_attention")
        for operator in names:
            assert any(f"titan_motif.{operator}" in target for target in operators), operator


@pytest.mark.parametrize("is_packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("cudnn", [False, True], ids=["flash", "cudnn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sdpa_tells_the_same_with_statistics(monkeypatch, dtype, cudnn: bool, is_packed: bool):
    """Whichever of SDPA's kernels runs: output and gradients, and the maxima of a long product."""
    from titan_motif.kernels import attention_reference, grouped_differential_attention, key_heads

    monkeypatch.setattr(attention_reference, "_prefers_cudnn", lambda device: cudnn)
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(heads: int) -> torch.Tensor:
        drawn = torch.randn(2, 300, heads, 64, device="cuda", generator=generator)
        return drawn.to(dtype).requires_grad_()

    q, k, v = draw(10), draw(4), draw(4)
    ids = torch.arange(300, device="cuda").expand(2, -1) // 130 if is_packed else None
    lam = torch.tensor(0.4, device="cuda")

    def run(**options):
        result = grouped_differential_attention(
            q, k, v, lam, 4, ids, implementation="sdpa", **options
        )
        out, statistics = result if isinstance(result, tuple) else (result, None)
        return out, statistics, torch.autograd.grad(out.float().square().sum(), (q, k, v))

    expected, _, expected_gradients = run()
    out, statistics, gradients = run(with_statistics=True)
    _, bounds, _ = run(with_statistics=True, exact_above=1e9)
    bound = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.02)
    for a, b in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        assert (a - b).double().norm() <= bound * b.double().norm()
    heads = key_heads(10, 4, 4)
    logits = q.detach().double().transpose(1, 2) @ k.detach().double()[:, :, heads].permute(
        0, 2, 3, 1
    )
    allowed = torch.ones(300, 300, dtype=torch.bool, device="cuda").tril()
    if is_packed:
        allowed = allowed & (ids[0] == ids[0][:, None])
    exact = (logits / 8).masked_fill(~allowed, -torch.inf).amax((0, 2, 3))
    assert (statistics.max_logits - exact).abs().max() <= 1e-5 * exact.max()
    assert (bounds.max_logits >= statistics.max_logits - 1e-5).all()
    if dtype != torch.float64:  # which no kernel with sums serves
        assert (bounds.max_logits <= exact + 6).all()  # log(300) = 5.7
