"""The cache of keys and values on a GPU: its logits are as near to float64 as those without it."""

import dataclasses

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@torch.no_grad()
@pytest.mark.parametrize("flavor", ["debug", "100m_gda", "100m_standard"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_with_the_cache_are_as_near_to_float64(flavor: str, dtype: torch.dtype):
    import titan_motif.device  # noqa: F401

    # isort: split
    from titan_motif.evaluation.continuation import continue_prompts
    from titan_motif.evaluation.next_token import Sampling
    from titan_motif.model import FLAVORS, Motif2Model
    from titan_motif.model.decoding import Decoder

    with torch.device("cuda"):
        model = Motif2Model(dataclasses.replace(FLAVORS[flavor], n_layers=2)).eval()
    model.init_weights()
    tokens = torch.randint(1024, (2, 301), device="cuda")
    model.to(dtype)
    model.scalars.float()
    without = model(tokens)
    decoder, found, begin = Decoder(model, 2, 301), [], 0
    for part in tokens.split([200, 1, 1, 90, 9], 1):
        found.append(decoder.logits(decoder.extend(part, [begin] * 2)))
        begin += part.shape[1]
    prompts = [tokens[0, :40].tolist(), tokens[1, :7].tolist()]
    options = Sampling(top_p=0.9, top_k=50, repetition_penalty=1.1)
    rows = continue_prompts(model, prompts, options, 20, samples=range(2))
    assert [len(row.tokens) for row in rows] == [20] * 4
    exact = model.double()(tokens)

    def error(logits: torch.Tensor) -> float:
        return float((logits.double() - exact).norm() / exact.norm())

    assert error(torch.cat(found, 1)) < 1.25 * error(without) + 1e-6
