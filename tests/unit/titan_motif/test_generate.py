"""Generating: the cache against the whole forward pass, where texts end, loading, the command."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from small_models import overrides, random_model, write_model, write_with_tokenizer

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import cli
from titan_motif.components.dcp_files import write_dcp
from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.components.safetensors_files import TensorShape
from titan_motif.components.seal import break_seal
from titan_motif.evaluation import continuation
from titan_motif.evaluation import generate as generate_command
from titan_motif.evaluation.chat import ChatPrompts
from titan_motif.evaluation.continuation import Speed, continue_prompts
from titan_motif.evaluation.loading import load_model, tokenizer_of
from titan_motif.evaluation.next_token import Sampling, token_probabilities
from titan_motif.evaluation.text_stream import TextStream
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


def greedy(model: Motif2Model, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = torch.tensor([prompt])
    for _ in range(num_tokens):
        with torch.no_grad():
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
    return tokens[0, len(prompt) :].tolist()


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


def pieces(folder: Path, tokens: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(load_tokenizer(folder).tokenizer, stops)
    found = [stream.push(token) for token in tokens]
    found.append(stream.finish())
    assert stream.text == "".join(found)
    return found


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


def run_of(tmp_path: Path, args: Motif2ModelArgs, tokenizer: object) -> Path:
    """Make a run's folder without its step, and return the folder of the step."""
    step = tmp_path / "run" / "checkpoint" / "step-5"
    step.parent.mkdir(parents=True)
    lines = [
        "training.seq_len = 32",
        "training.builtin_vocab_size = 300",
        "validation.seq_len = 32",
        f'model.hf_assets_path = "{tokenizer}"',
        overrides(args),
    ]
    job = "\n".join(lines)
    (tmp_path / "run" / "config.resolved.toml").write_text(job)
    return step


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


# ---- the command


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    return write_with_tokenizer(tmp_path / "model", network("grouped"), tokenizer_folder)


def generate(folder: Path, *more: str) -> int:
    return cli.main(["generate", str(folder), "--device", "cpu", *more])


def test_the_command_streams_one_prompt(folder: Path, capsys):
    file = folder / "figures.json"
    more = ["--max-new-tokens", "6", "--temperature", "0", "--json", str(file)]
    assert generate(folder, "--prompt", "the dog", *more) == 0
    printed, told = capsys.readouterr()
    tokenizer = load_tokenizer(folder).tokenizer
    prompt = tokenizer.encode("the dog").ids
    tokens = greedy(network("grouped").float(), prompt, 6)
    content = json.loads(file.read_text())
    (sample,) = content["prompts"][0]["samples"]
    tokens = tokens[: tokens.index(0)] if 0 in tokens else tokens
    assert sample["tokens"] == tokens
    assert printed == sample["text"] + "\n"
    assert sample["text"] == "".join(pieces(folder, tokens))
    assert told.startswith(f"generate: {len(prompt)} prompt tokens in ")
    assert told.endswith(" tokens/s\n")
    assert content["tokens_per_second"] == pytest.approx(
        content["new_tokens"] / content["new_seconds"]
    )
    # A stop text that it is known to say.
    place = len(sample["text"]) // 2
    stop = ["--stop", sample["text"][place : place + 2]]
    assert generate(folder, "--prompt", "the dog", *more, *stop) == 0
    (stopped,) = json.loads(file.read_text())["prompts"][0]["samples"]
    assert stopped["ended_by"] == "stop_string"
    assert stopped["text"] == sample["text"].partition(stop[1])[0]


def test_of_a_runs_checkpoint_folder_the_newest_whole_step_is_read(
    tokenizer_folder: Path, tmp_path: Path, capsys
):
    model = network("grouped").float()
    shapes = {n: TensorShape(tuple(v.shape), v.dtype) for n, v in model.state_dict().items()}
    last = run_of(tmp_path, model.model_args, tokenizer_folder)
    for number in (2, 5, 7):
        weights = {n: v * number for n, v in model.state_dict().items()}
        step = last.with_name(f"step-{number}")
        write_dcp(step, shapes, weights.__getitem__)
        if number == 7:
            break_seal(step)  # a save that was cut off
    more = ["--prompt", "the dog", "--max-new-tokens", "4", "--temperature", "0"]
    assert generate(last, *more) == 0
    of_the_step, _ = capsys.readouterr()
    assert generate(last.parent, *more) == 0
    printed, told = capsys.readouterr()
    assert printed == of_the_step
    assert told.startswith(f"{last.parent}: reading its newest step, step-5\n")


def test_a_files_prompts_are_what_they_are_alone(folder: Path, tmp_path: Path, capsys):
    texts = ["the", "cat and dog", "rain in"]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": t}) for t in texts) + "\n\n")
    (tmp_path / "p.txt").write_text("\n".join(texts))
    more = ["--max-new-tokens", "5", "--num-samples", "2", "--json", str(tmp_path / "f.json")]
    found = []
    for chosen in (
        ["--prompts-file", str(tmp_path / "p.jsonl"), "--batch-size", "4"],
        ["--prompts-file", str(tmp_path / "p.txt"), "--batch-size", "1"],
        ["--prompt", "the", "--prompt", "cat and dog", "--prompt", "rain in"],
    ):
        assert generate(folder, *chosen, *more) == 0
        found.append(json.loads((tmp_path / "f.json").read_text())["prompts"])
        printed = capsys.readouterr().out
        assert "--- prompt 3, sample 2\n" in printed
    assert found[0] == found[1] == found[2]
    assert [entry["prompt"] for entry in found[0]] == texts


def test_a_conversation_remembers_what_was_said(folder: Path, monkeypatch, capsys):
    file = folder / "figures.json"
    monkeypatch.setattr("sys.stdin", io.StringIO("the dog\n\nthe cat\n"))
    more = ["--system", "stay", "--max-new-tokens", "4", "--seed", "2", "--json", str(file)]
    assert generate(folder, "--chat", *more) == 0
    first, second = json.loads(file.read_text())["prompts"]
    text = first["samples"][0]["text"]
    assert capsys.readouterr().out.startswith(text + "\n")
    said = [
        {"role": "system", "content": "stay"},
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": text},
        {"role": "user", "content": "the cat"},
    ]
    for turn, length in ((first, 2), (second, 4)):
        rendered = ChatPrompts(folder).tokens(said[:length])
        assert turn["prompt_tokens"] == len(rendered)
    # One turn by itself is the conversation's first.
    assert generate(folder, "--chat", "--prompt", "the dog", *more) == 0
    assert json.loads(file.read_text())["prompts"] == [first]


def test_a_turn_that_cannot_be_answered_is_left_out(folder: Path, monkeypatch, capsys):
    file = folder / "figures.json"
    more = ["--max-new-tokens", "4", "--seed", "2", "--json", str(file)]

    def converse(lines: bytes) -> list:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), "utf-8"))
        assert generate(folder, "--chat", *more) == (len(lines.splitlines()) > 2)
        return json.loads(file.read_text())["prompts"]

    expected = converse(b"the dog\nthe cat\n")
    capsys.readouterr()
    long = b"rain " * 70 + b"\n"
    assert converse(b"the dog\n" + long + b"the \xff\n" + long + b"the cat\n") == expected
    told = capsys.readouterr().err.splitlines()
    left_out = [line for line in told if line.startswith("generate: this turn is left out: ")]
    assert len(left_out) == 3
    assert left_out[0].endswith("and 4 are to follow; the network is meant for 64")
    assert "the text has '\\udcff' at character 5, half of a surrogate pair or a" in left_out[1]
    assert told[-1] == "error: turns that could not be answered were left out: 3"


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError("out of memory")])
def test_what_was_said_is_written_however_a_conversation_ends(
    end: BaseException, folder: Path, monkeypatch, capsys
):
    def lines():
        yield "the dog"
        raise end

    monkeypatch.setattr(generate_command, "_lines", lines)
    file = folder / "figures.json"
    more = ["--chat", "--max-new-tokens", "4", "--json", str(file)]
    assert generate(folder, *more) == (end is not KeyboardInterrupt)
    (turn,) = json.loads(file.read_text())["prompts"]
    assert turn["prompt"] == "the dog"
    assert turn["samples"][0]["text"] == capsys.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_prompts_end_at_newlines_alone(end: str, folder: Path, tmp_path: Path, capsys):
    texts = ["the\u2028cat\x0b and", " \x85dog\r rain "]
    for name, lines in (("p.txt", texts), ("p.jsonl", [json.dumps({"prompt": t}) for t in texts])):
        (tmp_path / name).write_bytes(("\ufeff" + end.join([*lines, "", ""])).encode())
        more = ["--max-new-tokens", "2", "--json", str(tmp_path / "f.json")]
        assert generate(folder, "--prompts-file", str(tmp_path / name), *more) == 0
        found = json.loads((tmp_path / "f.json").read_text())["prompts"]
        assert [entry["prompt"] for entry in found] == texts


def test_a_batch_bounds_the_rows_that_run_at_once(folder: Path, tmp_path: Path, monkeypatch):
    sizes: list[int] = []

    def counting(*args, **options):
        rows = continue_prompts(*args, **options)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(generate_command, "continue_prompts", counting)
    more = ["--prompt", "the", "--prompt", "cat and dog", "--num-samples", "5"]
    more += ["--max-new-tokens", "6", "--dtype", "float64", "--json", str(tmp_path / "f.json")]
    found = []
    for batch_size, expected in ((1, [1] * 10), (2, [2, 2, 1] * 2), (8, [5, 5]), (10, [10])):
        sizes.clear()
        assert generate(folder, *more, "--batch-size", str(batch_size)) == 0
        assert sizes == expected
        found.append(json.loads((tmp_path / "f.json").read_text())["prompts"])
    assert found[0] == found[1] == found[2] == found[3]
    texts = [sample["text"] for entry in found[0] for sample in entry["samples"]]
    assert len(set(texts)) == 10


REFUSED = {
    "no prompt": ([], "there is no prompt; --prompt, --prompts-file or --chat is needed"),
    "two sources": (["--prompt", "a", "--prompts-file", "b"], "are both given; one of them"),
    "no such file": (["--prompts-file", "nowhere.txt"], "nowhere.txt: no such file"),
    "an empty file": (["--prompts-file", "empty.txt"], "empty.txt: holds no prompts"),
    "a folder": (["--prompts-file", "."], ".: cannot be read as a file (Is a directory)"),
    "no text": (["--prompt", "a \udcff\udcfe"], "--prompt has '\\udcff' at character 3, half of a"),
    "no system": (["--chat", "--system", "\udcff"], "--system has '\\udcff' at character 1, half"),
    "no stop": (["--prompt", "a", "--stop", "\udcff"], "--stop has '\\udcff' at character 1, half"),
    "half a pair": (
        ["--prompts-file", "half.jsonl"],
        "half.jsonl: line 1: the prompt has '\\ud800'",
    ),
    "no JSON": (["--prompts-file", "bad.jsonl"], "bad.jsonl: line 2 is no JSON ("),
    "no prompt in it": (
        ["--prompts-file", "other.jsonl"],
        'line 1: an object with a text "prompt"',
    ),
    "no chat": (["--prompt", "a", "--system", "b"], "--system is given; it needs --chat"),
    "samples": (["--chat", "--num-samples", "2"], "--num-samples is 2; a conversation has 1"),
    "no samples": (["--prompt", "a", "--num-samples", "0"], "--num-samples is 0; at least 1 is"),
    "no tokens": (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens is 0; at least 1"),
    "too long": (["--prompt", "a"], "256 are to follow; the network is meant for 64"),
    "empty": (["--prompt", "", "--max-new-tokens", "2"], "prompt 1 is empty; at least one token"),
    "empty stop": (["--prompt", "a", "--stop", ""], "--stop is empty; a text is needed"),
    "cold": (
        ["--prompt", "a", "--temperature", "-1"],
        "--temperature is -1.0; 0 or more is needed",
    ),
    "top k": (["--prompt", "a", "--top-k", "-1"], "--top-k is -1; 0 (all) or more is needed"),
    "top p": (["--prompt", "a", "--top-p", "0"], "--top-p is 0.0; more than 0 and at most 1 is"),
    "min p": (["--prompt", "a", "--min-p", "1.5"], "--min-p is 1.5; 0 to 1 is needed"),
    "penalty": (["--prompt", "a", "--repetition-penalty", "0"], "is 0.0; more than 0 is needed"),
    "device": (["--prompt", "a", "--device", "moon"], "--device is 'moon'; it cannot be used ("),
    "tokenizer": (
        ["--prompt", "a", "--tokenizer", "x"],
        "--tokenizer is 'x'; it holds no tokenizer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line(name: str, folder: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
    (tmp_path / "half.jsonl").write_text('{"prompt": "\\ud800"}\n')
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n')
    arguments, message = REFUSED[name]
    assert generate(folder, *arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path, capsys):
    args = dataclasses.replace(network("plain").model_args, vocab_size=280)
    other = write_model(tmp_path / "other", random_model(args))
    assert generate(other, "--prompt", "a", "--tokenizer", str(folder)) == 1
    assert "the tokenizer has 290 entries; the network knows 280\n" in capsys.readouterr().err
    assert generate(other, "--prompt", "a") == 1
    assert "what tokenizer it has is not known" in capsys.readouterr().err
    assert generate(tmp_path / "none", "--prompt", "a", "--tokenizer", str(folder)) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such folder\n"
