"""A model under lm-evaluation-harness: scores, and the harness's own model as an oracle.

What needs lm-evaluation-harness (the extra `eval`) is left out where it is not installed.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import GROUPED, random_model, write_with_tokenizer

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import cli
from titan_motif.evaluation import scoring
from titan_motif.evaluation.continuation import continue_prompts
from titan_motif.evaluation.loading import load_model
from titan_motif.evaluation.next_token import Sampling
from titan_motif.evaluation.scoring import score
from titan_motif.model import Motif2Model, Motif2ModelArgs

ARGS = GROUPED
TIED = Motif2ModelArgs(
    dim=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=4,
    hidden_dim=24,
    grouped_ratio=0,
    vocab_size=300,
    max_seq_len=64,
    tie_embeddings=True,
    kernels="torch",
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- scores


@torch.no_grad()
def plain_score(model: Motif2Model, context: list[int], continuation: list[int], longest: int):
    tokens = (context + continuation)[-(longest + 1) :]
    log_probabilities = model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
    log_probabilities = log_probabilities[-len(continuation) :]
    expected = log_probabilities[torch.arange(len(continuation)), torch.tensor(continuation)]
    return float(expected.sum()), log_probabilities.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("args", [ARGS, TIED], ids=["grouped", "plain, tied"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_the_whole_forward_pass(args, batch_size: int, monkeypatch):
    monkeypatch.setattr(scoring, "PROJECTED_TOKENS", 5)
    model = random_model(args).eval()
    draw = random.Random(3)
    pairs = [
        ([draw.randrange(300) for _ in range(n)], [draw.randrange(300) for _ in range(m)])
        for n, m in ((1, 1), (3, 7), (9, 2), (40, 12), (1, 30), (2, 1))
    ]
    # Choices of one token after one context, one of them the likeliest.
    context = pairs[2][0]
    with torch.no_grad():
        best = int(model(torch.tensor([context]))[0, -1].argmax())
    pairs += [(context, [token]) for token in (best, best - 1)]
    found = score(model, pairs, batch_size, max_length=30)
    for one, (before, after) in zip(found, pairs, strict=True):
        likelihood, is_greedy = plain_score(model, before, after, 30)
        assert one.log_likelihood == pytest.approx(likelihood, abs=1e-10)
        assert one.is_greedy == is_greedy
    assert [one.is_greedy for one in found[-2:]] == [True, False]


@torch.no_grad()
def test_hidden_states_end_in_the_forward_passs_logits():
    model = random_model(ARGS).eval()
    tokens = torch.randint(300, (2, 17))
    logits = model.hidden_states(tokens) @ model.output.weight.T
    assert torch.equal(logits, model(tokens))


def test_choices_of_one_token_share_a_pass(monkeypatch):
    model, passes = random_model(ARGS).eval(), []

    def counting(tokens: torch.Tensor) -> torch.Tensor:
        passes.append(tuple(tokens.shape))
        return Motif2Model.hidden_states(model, tokens)

    monkeypatch.setattr(model, "hidden_states", counting)
    score(model, [([5, 9, 7], [token]) for token in range(20)] + [([5, 9], [7, 8])], 8, 64)
    assert passes == [(1, 3)]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], [1]), "request 1 has no tokens in its context; one is needed"),
        (([1], []), "request 1 has no tokens in its continuation; one is needed"),
        (([1], [2] * 65), "a continuation of 65 tokens; the network is given at most 64"),
        (([300], [2]), "request 1 has the token 300; the network knows 300"),
    ],
)
def test_pairs_that_cannot_be_scored(pair: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        score(random_model(ARGS).eval(), [pair], 1, 64)


# ---- the harness's requests


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("exported")
    write_with_tokenizer(root / "model", random_model(ARGS), tokenizer_folder)
    assert cli.main(["export", "--from", str(root / "model"), "--to", str(root / "hf")]) == 0
    return root / "hf"


@pytest.fixture(scope="module")
def request_of() -> Callable:
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    return lambda kind, *arguments: instance(kind, {}, arguments, 0)


@pytest.fixture(scope="module")
def ours(exported: Path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from titan_motif.evaluation.harness_model import HarnessModel

    return HarnessModel(load_model(exported), exported, batch_size=3)


@pytest.fixture(scope="module")
def theirs(exported: Path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    pytest.importorskip("accelerate", reason="the harness's hf model needs accelerate")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    options = {"trust_remote_code": True, "device": "cpu", "dtype": "float32", "batch_size": 3}
    return huggingface.HFLM(pretrained=str(exported), **options)


PAIRS = [
    ("the cat", " and"),
    ("the dog ", "sees"),  # the space moves to the continuation
    ("the dog \n", " see"),
    ("", " the"),  # after the end-of-text token
    ("", "<|endoftext|> the"),
    ("the " * 70, "cat and"),  # longer than the network
    ("the rain <|end|>\n", " dog"),  # a special token
    ("ü", "€"),
    *[("the cat and the", choice) for choice in (" dog", " cat", " rain")],
]
TEXTS = ["the cat and the dog " * 20, "x", "rain in spain", "the" * 64, "a" * 65]


def test_the_adapter_is_set_up_as_hf_is(ours, theirs):
    for name in ("max_length", "prefix_token_id", "eot_token_id", "rank", "world_size"):
        assert getattr(ours, name) == getattr(theirs, name)
    for text in ("the cat ", "<|endoftext|>the <|end|>", "€"):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert ours.tok_decode(ours.tok_encode(text)) == theirs.tok_decode(ours.tok_encode(text))


def test_log_likelihoods_are_those_of_hf(ours, theirs, request_of):
    ours.num_cut = 0
    requests = [request_of("loglikelihood", *pair) for pair in PAIRS]
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)
    assert [x for _, x in found] == [x for _, x in expected]
    assert ours.num_cut == 1
    requests = [request_of("loglikelihood_rolling", text) for text in TEXTS]
    expected = theirs.loglikelihood_rolling(requests)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-6, abs=1e-4)


def test_texts_are_those_of_hf(ours, theirs, request_of):
    contexts = ["the cat", "rain", "the " * 80, "a dog sees"]
    for settings in (
        {"until": [], "max_gen_toks": 20},
        {"until": ["a", " t", "m"], "max_gen_toks": 20, "do_sample": False, "temperature": 0.7},
        {"until": "f", "max_gen_toks": 7, "temperature": 0.0},
    ):
        requests = [request_of("generate_until", text, dict(settings)) for text in contexts]
        found, expected = ours.generate_until(requests), theirs.generate_until(requests)
        # A character whose last bytes have not come is theirs alone.
        for text, whole in zip(found, expected, strict=True):
            assert text in (whole, whole.removesuffix("\ufffd"))


def test_samples_of_one_request_differ_and_come_again(ours, request_of):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "top_k": 50}
    requests = [request_of("generate_until", "the cat", settings)] * 4
    found = ours.generate_until(requests)
    assert len(set(found)) == 4
    assert ours.generate_until(requests) == found
    prompt = ours.tok_encode("the cat")
    sampling = Sampling(temperature=1.5, top_k=50, seed=2)
    (row,) = continue_prompts(ours.model, [prompt], sampling, 8, stop_tokens={0})
    assert found[2] == ours.tok_decode(row.tokens).rstrip("\ufffd")
    with pytest.raises(ValueError, match="a task sets 'num_beams' of generation; known are temper"):
        ours.generate_until([request_of("generate_until", "a", {"num_beams": 2})])
    with pytest.raises(
        ValueError, match="asks for 256 new tokens; the network is given at most 64"
    ):
        ours.generate_until([request_of("generate_until", "a", {"until": []})])


def test_a_chat_is_rendered_and_ends_with_the_turn(ours, theirs, exported: Path, request_of):
    from titan_motif.evaluation.harness_model import HarnessModel

    chat = HarnessModel(ours.model, exported, is_chat=True)
    history = [{"role": "system", "content": "Be."}, {"role": "user", "content": "the cat"}]
    text = "<|system|>\nBe.<|end|>\n<|user|>\nthe cat<|end|>\n<|assistant|>\n"
    assert chat.apply_chat_template(history) == theirs.apply_chat_template(history) == text
    history.append({"role": "assistant", "content": "Answer:"})
    begun = chat.apply_chat_template(history, add_generation_prompt=False)
    assert begun == text + "Answer:"
    assert begun == theirs.apply_chat_template(history, add_generation_prompt=False)
    end = chat.tok_encode("<|end|>")
    assert chat._stops == {0, *end}
    assert ours._stops == {0}
