"""`titan-motif generate`: prompts, files of them, conversations, and what it refuses."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from continuations import greedy, pieces
from small_models import GROUPED, random_model, run_of, write_model, write_with_tokenizer

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import cli
from titan_motif.components.dcp_files import write_dcp
from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.components.safetensors_files import TensorShape
from titan_motif.components.seal import break_seal
from titan_motif.evaluation import generate as generate_command
from titan_motif.evaluation.chat import ChatPrompts
from titan_motif.evaluation.continuation import continue_prompts
from titan_motif.model import Motif2Model

pytestmark = pytest.mark.usefixtures("one_thread")


def grouped() -> Motif2Model:
    """A float64 model of random weights."""
    return random_model(GROUPED).eval()


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    return write_with_tokenizer(tmp_path / "model", grouped(), tokenizer_folder)


def generate(folder: Path, *more: str) -> int:
    return cli.main(["generate", str(folder), "--device", "cpu", *more])


def test_the_command_streams_one_prompt(folder: Path, capsys):
    file = folder / "figures.json"
    more = ["--max-new-tokens", "6", "--temperature", "0", "--json", str(file)]
    assert generate(folder, "--prompt", "the dog", *more) == 0
    printed, told = capsys.readouterr()
    tokenizer = load_tokenizer(folder).tokenizer
    prompt = tokenizer.encode("the dog").ids
    tokens = greedy(grouped().float(), prompt, 6)
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
    model = grouped().float()
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
    args = dataclasses.replace(GROUPED, vocab_size=280)
    other = write_model(tmp_path / "other", random_model(args))
    assert generate(other, "--prompt", "a", "--tokenizer", str(folder)) == 1
    assert "the tokenizer has 290 entries; the network knows 280\n" in capsys.readouterr().err
    assert generate(other, "--prompt", "a") == 1
    assert "what tokenizer it has is not known" in capsys.readouterr().err
    assert generate(tmp_path / "none", "--prompt", "a", "--tokenizer", str(folder)) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such folder\n"
