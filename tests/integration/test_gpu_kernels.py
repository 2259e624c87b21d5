"""The kernels inside the model, on a GPU: a compiled block of the 12.7B model's width."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def block_step(kernels: str, compiled: bool) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Output and gradients of one block in bfloat16, and the operators of the compiled graph."""
    import dataclasses

    import titan_motif.device  # noqa: F401

    # isort: split
    from titan_motif.model import FLAVORS, Motif2Model

    torch._dynamo.reset()
    torch.manual_seed(0)
    args = dataclasses.replace(FLAVORS["12_7b"], n_layers=1, vocab_size=256, kernels=kernels)
    with torch.device("cuda"):
        model = Motif2Model(args)
    model.init_weights()
    for part in (model.layers, model.tok_embeddings, model.norm, model.output):
        part.bfloat16()
    operators: list[str] = []
    if compiled:
        from torch._dynamo.backends.registry import lookup_backend

        def backend(graph, example_inputs):
            operators.extend(str(node.target) for node in graph.graph.nodes)
            return lookup_backend("inductor")(graph, example_inputs)

        model.layers["0"] = torch.compile(model.layers["0"], backend=backend, fullgraph=True)
    tokens = torch.randint(0, 256, (1, 1025), device="cuda")
    logits = model(tokens[:, :-1]).flatten(0, 1).float()
    torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
    found = {"logits": logits.detach()}
    for name, parameter in model.named_parameters():
        found[name.replace("_orig_mod.", "")] = parameter.grad
    return found, operators


@pytest.mark.parametrize("compiled", [False, True])
def test_a_block_with_kernels_equals_one_without(compiled: bool):
    expected, _ = block_step("torch", compiled=False)
    found, operators = block_step("triton", compiled)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).float().norm() / tensor.float().norm()
        assert error < 0.02, name  # of bfloat16 products in another order
    if compiled:
        for operator in ("poly_norm_mul", "add_rms_norm", "rms_norm"):
            assert any(f"titan_motif.{operator}" in target for target in operators), operator
