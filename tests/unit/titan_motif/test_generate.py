"""Generating: the cache against the whole forward pass, where texts end, and loading."""

import dataclasses
from pathlib import Path

import pytest
import torch
from continuations import greedy, pieces
from small_models import random_model, run_of, write_model

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import cli
from titan_motif.components.dcp_files import write_dcp
from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.components.safetensors_files import TensorShape
from titan_motif.evaluation import continuation
from titan_motif.evaluation.chat import ChatPrompts
from titan_motif.evaluation.continuation import Speed, continue_prompts
from titan_motif.evaluation.loading import load_model, tokenizer_of
from titan_motif.evaluation.next_token import Sampling, token_probabilities
from titan_motif.model import Motif2Model, Motif2ModelArgs
from titan_motif.model.decoding import Decoder

SIZES = {"n_layers": 2, "hidden_dim": 24, "vocab_size": 300, "max_seq_len": 64, "kernels": "torch"}
NETWORKS = {
    "grouped": {"dim": 20, "n_heads": 10, "n_kv_heads": 4, "head_dim": 8},
    "two groups to a pair": {
        "dim": 20,
        "n_heads": 12,
        "n_kv_heads": 4,
        "head_dim": 8,
        "grouped_ratio": 2,
    },
    "differential, tied": {
        "dim": 16,
        "n_heads": 8,
        "n_kv_heads": 4,
        "head_dim": 4,
        "grouped_ratio": 1,
        "tie_embeddings": True,
        "lam_init": (0.3, 0.45),
    },
    "plain": {"dim": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "grouped_ratio": 0},
}
GREEDY = Sampling(temperature=0)

pytestmark = pytest.mark.usefixtures("one_thread")


def network(name: str) -> Motif2Model:
    """A float64 model of random weights."""
    return random_model(Motif2ModelArgs(**SIZES, **NETWORKS[name])).eval()


@pytest.fixture(params=NETWORKS)
def model(request) -> Motif2Model:
    return network(request.param)


def apart(then: torch.Tensor, now: torch.Tensor) -> float:
    return float((then - now).abs().max() / then.abs().max())


# ---- the cache


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_logits_with_the_cache_are_those_without(model, dtype: torch.dtype, bound: float):
    model = model.to(dtype)
    tokens = torch.randint(300, (2, 17))
    expected = model(tokens)
    for sizes in ([17], [5, 1, 1, 6, 4], [1] * 17):
        decoder, found, begin = Decoder(model, 2, 17), [], 0
        for part in tokens.split(sizes, 1):
            found.append(decoder.logits(decoder.extend(part, [begin] * 2)))
            begin += part.shape[1]
        assert apart(expected, torch.cat(found, 1)) < bound, sizes
    with pytest.raises(ValueError, match="a row of 18 tokens; the cache has 17 slots"):
        decoder.extend(tokens[:, :1], [17, 3])


@torch.no_grad()
def test_rows_of_different_lengths_are_what_they_are_alone(model):
    texts = [torch.randint(300, (1, n)) for n in (3, 9, 6)]
    more = torch.randint(300, (3, 4))
    padded = torch.full((3, 9), 7)
    for row, text in zip(padded, texts, strict=True):
        row[: text.shape[1]] = text
    decoder = Decoder(model, 3, 13)
    hidden = decoder.extend(padded, [0, 0, 0])
    found = [decoder.logits(hidden[torch.arange(3), torch.tensor([2, 8, 5])])]
    for step in range(4):
        h = decoder.extend(more[:, step : step + 1], [n + step for n in (3, 9, 6)])
        found.append(decoder.logits(h[:, 0]))
    for row, text in enumerate(texts):
        expected = model(torch.cat((text, more[row : row + 1]), 1))[0, text.shape[1] - 1 :]
        assert apart(expected, torch.stack([x[row] for x in found])) < 1e-12


PROMPTS = [[5, 9, 200], [1], [17, 4, 250, 11, 3, 8, 90]]


@pytest.mark.parametrize("chunk_tokens", [4096, 3])
def test_greedy_tokens_are_those_of_the_whole_forward_pass(model, chunk_tokens: int, monkeypatch):
    monkeypatch.setattr(continuation, "CHUNK_TOKENS", chunk_tokens)
    speed = Speed()
    found = continue_prompts(model, PROMPTS, GREEDY, 9, samples=range(2), speed=speed)
    assert [row.prompt for row in found] == [p for p in PROMPTS for _ in range(2)]
    for row in found:
        assert row.tokens == greedy(model, row.prompt, 9)
        assert row.ended_by == "length"
    assert (speed.prompt_tokens, speed.new_tokens) == (11, 54)


def test_greedy_tokens_are_those_of_transformers(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = network("grouped").float()
    write_model(tmp_path / "model", model)
    assert cli.main(["export", "--from", str(tmp_path / "model"), "--to", f"{tmp_path}/hf"]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", trust_remote_code=True, dtype=torch.float32
    ).eval()
    prompts = torch.tensor([PROMPTS[2], [0] * 4 + PROMPTS[0]])
    mask = torch.tensor([[1] * 7, [0] * 4 + [1] * 3])
    expected = theirs.generate(
        prompts, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    found = continue_prompts(load_model(tmp_path / "hf"), [PROMPTS[2], PROMPTS[0]], GREEDY, 12)
    assert [row.tokens for row in found] == expected[:, 7:].tolist()


# ---- sampling


def test_a_rows_tokens_depend_on_its_prompt_its_number_and_the_seed():
    model = network("grouped")
    warm = Sampling(temperature=1.5, seed=4)
    together = continue_prompts(model, PROMPTS, warm, 8, samples=range(3))
    for number, prompt in enumerate(PROMPTS):
        alone = continue_prompts(model, [prompt], warm, 8, samples=range(3))
        assert alone == together[3 * number : 3 * number + 3]
    texts = {tuple(row.tokens) for row in together}
    assert len(texts) == 9
    other = continue_prompts(model, PROMPTS, dataclasses.replace(warm, seed=5), 8, samples=range(3))
    assert texts.isdisjoint(tuple(row.tokens) for row in other)


def test_a_continuation_is_drawn_from_the_models_distribution():
    model = network("plain")
    sampling = Sampling(temperature=2.0, top_k=4, repetition_penalty=1.5)
    rows = continue_prompts(model, [[7, 9]], sampling, 1, samples=range(3000))
    seen = torch.zeros(1, 300, dtype=torch.bool)
    seen[0, [7, 9]] = True
    with torch.no_grad():
        expected = token_probabilities(model(torch.tensor([[7, 9]]))[:, -1], sampling, seen)[0]
    shares = torch.tensor([row.tokens[0] for row in rows]).bincount(minlength=300) / 3000
    assert (expected > 0).sum() == 4
    assert float((shares - expected).abs().max()) < 4 * 0.5 / 3000**0.5


def test_a_penalty_counts_the_prompt_and_what_was_drawn():
    strong = Sampling(repetition_penalty=1e9, temperature=0)
    (row,) = continue_prompts(network("grouped"), [[3, 5]], strong, 20)
    assert len({3, 5, *row.tokens}) == 22


# ---- where a continuation ends


def test_rows_end_at_a_stop_token_by_themselves():
    model = network("grouped")
    whole = [greedy(model, prompt, 12) for prompt in PROMPTS]
    stops = {whole[0][4], whole[1][7]}
    told = []
    rows = continue_prompts(
        model,
        PROMPTS,
        GREEDY,
        12,
        stop_tokens=stops,
        on_token=lambda row, token: told.append((row, token)) or (row == 2 and len(told) > 9),
    )
    for number, row in enumerate(rows[:2]):
        end = next(i for i, token in enumerate(whole[number]) if token in stops)
        assert (row.tokens, row.ended_by) == (whole[number][:end], "stop_token")
    assert rows[2].ended_by in ("caller", "stop_token")
    assert rows[2].tokens == whole[2][: len(rows[2].tokens)]
    assert [token for row, token in told if row == 1] == rows[1].tokens


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens", "message"),
    [
        ([], 4, "there are no prompts; at least one is needed"),
        ([[1], []], 4, "prompt 2 is empty; at least one token is needed"),
        ([[1, 300]], 4, "prompt 1 has the token 300; the network knows 300"),
        ([[1] * 60], 5, "prompt 1 has 60 tokens, and 5 are to follow; the network is meant for 64"),
        ([[1]], 0, "--max-new-tokens is 0; at least 1 is needed"),
    ],
)
def test_prompts_that_cannot_be_continued(prompts: list, max_new_tokens: int, message: str):
    with pytest.raises(ValueError, match=message) as raised:
        continue_prompts(network("plain"), prompts, GREEDY, max_new_tokens)
    assert "\n" not in str(raised.value)


# ---- text


def test_a_stream_waits_for_whole_characters(tokenizer_folder: Path):
    tokenizer = load_tokenizer(tokenizer_folder).tokenizer
    text = "the ü€𝄞 dog"
    tokens = tokenizer.encode(text).ids
    found = pieces(tokenizer_folder, tokens)
    assert "".join(found) == text
    assert all("\ufffd" not in piece for piece in found)
    first = tokenizer.encode("a €").ids  # three bytes, three tokens
    for missing in (1, 2):
        assert "".join(pieces(tokenizer_folder, first[:-missing])) == "a "
    # A byte that begins nothing is shown once what follows proves it.
    broken = [*first[:-1], *tokenizer.encode("dog").ids]
    assert "".join(pieces(tokenizer_folder, broken)) == "a \ufffddog"


def test_a_stream_ends_before_a_stop_text(tokenizer_folder: Path):
    tokens = load_tokenizer(tokenizer_folder).tokenizer.encode("a cat and\nxy\nxyz dog").ids
    for stops, expected in (
        (("\nxyz",), "a cat and\nxy"),
        (("dog ", "zzz"), "a cat and\nxy\nxyz dog"),
        (("at and\nxy", "cat"), "a "),
        (("a",), ""),
    ):
        found = pieces(tokenizer_folder, tokens, stops)
        assert "".join(found) == expected
    # Nothing is held that no stop text can begin with.
    early = pieces(tokenizer_folder, tokens, ("\nxyz",))
    assert "".join(early[:2]).startswith("a")


def test_a_chats_template_and_its_end(tokenizer_folder: Path, tmp_path: Path):
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "the cat"}]
    tokenizer = load_tokenizer(tokenizer_folder).tokenizer
    chat, end = ChatPrompts(tokenizer_folder), tokenizer.token_to_id("<|end|>")
    tokens = chat.tokens(messages)
    text = "<|system|>\nBe.<|end|>\n<|user|>\nthe cat<|end|>\n<|assistant|>\n"
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text
    assert chat.end_of_turn() == end
    assert tokens.count(end) == 2
    with pytest.raises(ValueError, match="the template refuses it: no role king; system"):
        chat.tokens([{"role": "king", "content": ""}])
    with pytest.raises(ValueError, match="no such file; a tokenizer folder holds"):
        ChatPrompts(tmp_path)


# ---- loading


def test_what_training_keeps_in_float32_stays_so(tmp_path: Path):
    model = network("grouped").float()
    shapes = {n: TensorShape(tuple(v.shape), v.dtype) for n, v in model.state_dict().items()}
    step = run_of(tmp_path, model.model_args, "nowhere")
    write_dcp(step, shapes, lambda name: model.state_dict()[name])
    loaded = load_model(step, dtype=torch.bfloat16)
    assert not loaded.training
    for name, value in model.state_dict().items():
        kept = value if name.startswith("scalars.") else value.bfloat16()
        assert loaded.state_dict()[name].dtype == kept.dtype
        assert torch.equal(loaded.state_dict()[name], kept), name
    assert torch.equal(loaded.scalars.lam_init, model.scalars.lam_init)
    with pytest.raises(ValueError, match=r"hf_assets_path is 'nowhere'; it holds no tokenizer.jso"):
        tokenizer_of(step)
    with pytest.raises(ValueError, match="--device is 'gpu'; it cannot be used"):
        load_model(step, device="gpu")
