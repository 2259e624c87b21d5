"""`titan-motif evaluate`: presets, local tasks, results, and the command.

What needs lm-evaluation-harness (the extra `eval`) is left out where it is not installed.
"""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import GROUPED, random_model, write_source, write_with_tokenizer

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import cli
from titan_motif.components.preparation.tokenizer import (
    load_tokenizer,
)
from titan_motif.corpus import sums as corpus_sums
from titan_motif.evaluation import evaluate as evaluate_command
from titan_motif.evaluation.loading import load_model
from titan_motif.evaluation.local_tasks import needle, sums
from titan_motif.evaluation.ranks import Ranks
from titan_motif.evaluation.results import figures_of, write_tensorboard
from titan_motif.evaluation.scoring import score
from titan_motif.harness.presets import LOCAL_TASKS, PRESETS, Wanted, wanted_tasks
from titan_motif.model import Motif2Model

ARGS = dataclasses.replace(GROUPED, max_seq_len=256)
needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: pip install -e '.[eval]'",
)
pytestmark = pytest.mark.usefixtures("one_thread")


# ---- names


def test_presets_have_the_reports_shots():
    reports = {name: preset.shots for name, preset in PRESETS.items() if preset.is_reports}
    assert reports == {"gsm8k": 8, "math": 4, "humaneval": 0, "mbpp": 3, "mmlu": 5}
    assert {n for n, p in PRESETS.items() if p.runs_code} == {"humaneval", "mbpp"}


def test_names_stand_for_tasks():
    assert wanted_tasks(["motif2"]) == [
        Wanted(preset.task, preset.shots, preset) for preset in PRESETS.values()
    ]
    one = wanted_tasks(["sums, motif2:gsm8k,sums", "mmlu_anatomy"])
    assert one == [
        Wanted("sums"),
        Wanted("gsm8k_cot", 8, PRESETS["gsm8k"]),
        Wanted("mmlu_anatomy"),
    ]
    assert [task.is_local for task in one] == [True, False, False]
    assert [task.name for task in wanted_tasks(["local"])] == list(LOCAL_TASKS)


REFUSED = {
    "no task": ([], "--tasks is not given; a task is needed: `titan-motif evaluate --list-"),
    "an empty one": (["--tasks", ","], "--tasks is empty; a task is needed"),
    "no preset": (["--tasks", "motif2:gsm8"], "(did you mean 'gsm8k'?); motif2: goes with gsm8k,"),
    "limit": (["--tasks", "sums", "--limit", "0"], "--limit is 0; at least 1 is needed"),
    "batch": (["--tasks", "sums", "--batch-size", "0"], "--batch-size is 0; at least 1 is"),
    "shots": (["--tasks", "sums", "--num-fewshot", "-1"], "--num-fewshot is -1; at least 0 is"),
    "system": (["--tasks", "sums", "--system", "x"], "--system is given; it needs --chat"),
    "step": (["--tasks", "sums", "--step", "3"], "--step is given; it needs --tensorboard"),
    "data": (["--tasks", "sums", "--data", "x"], "--data is given; it needs the task perplexity"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_come_before_anything_is_read(name: str, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_command, "newest_step", pytest.fail)
    arguments, message = REFUSED[name]
    assert cli.main(["evaluate", "model", *arguments]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_without_the_harness_one_line_tells_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "titan_motif.harness.package", raising=False)
    assert cli.main(["evaluate", "model", "--tasks", "sums"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: lm-evaluation-harness is not installed")
    assert printed.endswith("pip install -e '.[eval]' brings it\n")
    assert printed.count("\n") == 1


def test_the_list_tells_what_is_downloaded(capsys):
    assert cli.main(["evaluate", "--list-tasks"]) == 0
    printed = capsys.readouterr().out
    for name, preset in PRESETS.items():
        (line,) = [x for x in printed.splitlines() if x.split()[:1] == [f"motif2:{name}"]]
        told = f"{preset.shots}, {'the report' if preset.is_reports else 'ours'}"
        assert told in line
        assert preset.data in line
    assert all(f"  {name} " in printed for name in LOCAL_TASKS)


# ---- results


FOUND = {
    "results": {
        "sums": {
            "name": "sums",
            "alias": "sums",
            "sample_len": 200,
            "exact_match,none": 0.25,
            "exact_match_stderr,none": 0.03,
            "exact_match,strict": 0.5,
            "exact_match_stderr,strict": "N/A",
        },
    },
    "n-shot": {"sums": 4},
    "versions": {"sums": 1},
}
SUMS = {
    "metrics": {
        "exact_match": {"value": 0.25, "stderr": 0.03},
        "exact_match/strict": {"value": 0.5, "stderr": None},
    },
    "samples": 200,
    "shots": 4,
    "version": 1,
}


def test_results_as_data_and_in_tensorboard(tmp_path: Path):
    assert figures_of(FOUND) == {"sums": SUMS}
    write_tensorboard(tmp_path, {"tasks": figures_of(FOUND), "step": 70})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    for metric, value in (("exact_match", 0.25), ("exact_match/strict", 0.5)):
        (event,) = events.Scalars(f"evaluation/sums/{metric}")
        assert (event.step, event.value) == (70, value)


def test_one_process_is_all_ranks(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with Ranks() as ranks:
        assert (ranks.rank, ranks.size, ranks.device("cuda")) == (0, 1, "cuda")
        assert ranks.all_gather(torch.tensor(7)).tolist() == [7]
        assert ranks.gather_object("x") == ["x"]


# ---- the command


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    return write_with_tokenizer(tmp_path / "step-7", random_model(ARGS), tokenizer_folder)


def evaluate(folder: Path, *more: str) -> int:
    return cli.main(["evaluate", str(folder), "--device", "cpu", *more])


@pytest.fixture
def few_tasks(monkeypatch) -> Iterator[None]:
    """Have the harness know four folders of its tasks: reading all of them takes ten seconds."""
    import lm_eval.tasks

    from titan_motif.harness import manager

    root, make = Path(lm_eval.tasks.__file__).parent, manager.TaskManager
    some = [str(root / name) for name in ("gsm8k", "hellaswag", "humaneval", "mbpp")]

    def made(include_path: list[str] | None, include_defaults: bool):
        theirs = some if include_defaults else []
        return make(include_path=[*theirs, *(include_path or ())], include_defaults=False)

    monkeypatch.setattr(manager, "TaskManager", made)
    manager._manager.cache_clear()
    yield
    manager._manager.cache_clear()


@torch.no_grad()
def nats_of(model: Motif2Model, tokens: list[int], longest: int) -> float:
    """Minus the log-likelihood of a text after the end-of-text token, window by window."""
    total = 0.0
    for begin in range(0, len(tokens), longest):
        end = min(begin + longest, len(tokens))
        # All but the first window have as much context as fits.
        first = max(end - longest, 0)
        window = torch.tensor([([0, *tokens])[first:end]])
        log_probabilities = model(window)[0].log_softmax(-1)[begin - first :]
        total -= float(log_probabilities[torch.arange(end - begin), tokens[begin:end]].sum())
    return total


@needs_harness
def test_the_command_on_local_tasks(folder: Path, tokenizer_folder: Path, tmp_path: Path, capsys):
    texts = ["the rain in spain " * 9, "a dog"]
    for group, some in (("web", texts), ("books", texts[1:])):
        write_source(tmp_path / "data" / group, tokenizer_folder, some)
    file = tmp_path / "results.json"
    more = ["--tasks", "sums,perplexity", "--tasks", "needle", "--limit", "6"]
    more += ["--data", str(tmp_path / "data")]
    more += ["--max-new-tokens", "5", "--tensorboard", str(tmp_path / "tb")]
    assert evaluate(folder, *more, "--json", str(file)) == 0
    found = json.loads(file.read_text())
    tasks = found["tasks"]
    names = ["sums", "perplexity_books", "perplexity_web", "needle_256"]
    assert list(tasks) == names
    assert [tasks[name]["samples"] for name in names] == [6, 1, 2, 6]
    assert [tasks[name]["shots"] for name in names] == [4, 0, 0, 0]
    assert [tasks[name]["version"] for name in names] == [1, 1, 1, 1]
    assert (found["step"], found["ranks"], found["max_length"]) == (7, 1, 256)

    model, tokenizer = load_model(folder), load_tokenizer(folder).tokenizer
    encoded = [tokenizer.encode(text).ids for text in texts]
    nats = sum(nats_of(model, tokens, 256) for tokens in encoded)
    metrics = tasks["perplexity_web"]["metrics"]
    expected = nats / sum(map(len, encoded))
    assert metrics["nats_per_token"]["value"] == pytest.approx(expected, rel=1e-5)
    expected = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert metrics["bits_per_byte"]["value"] == pytest.approx(expected, rel=1e-5)

    rows = needle.haystacks(256, lambda text: len(tokenizer.encode(text).ids))[:6]
    right = 0
    for row in rows:
        context = tokenizer.encode(row["text"]).ids
        pairs = [(context, tokenizer.encode(f" {choice}").ids) for choice in row["choices"]]
        likelihoods = [x.log_likelihood for x in score(model, pairs, 4, 256)]
        right += likelihoods.index(max(likelihoods)) == row["target"]
    assert tasks["needle_256"]["metrics"]["acc"]["value"] == pytest.approx(right / 6)

    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.split()[0] in names] == names
    assert list((tmp_path / "tb").iterdir())


@needs_harness
def test_a_users_own_task(folder: Path, tmp_path: Path, few_tasks):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rows.jsonl").write_text('{"q": "the cat", "a": "dog"}\n' * 3)
    (tmp_path / "own" / "pets.yaml").write_text(
        "task: pets\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'own' / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\n"
        "doc_to_choice: [dog, cat]\ndoc_to_target: '{{a}}'\nmetadata: {version: 4}\n"
    )
    file = tmp_path / "results.json"
    more = ["--tasks", "pets", "--include-path", str(tmp_path / "own"), "--json", str(file)]
    assert evaluate(folder, *more) == 0
    found = json.loads(file.read_text())["tasks"]["pets"]
    assert (found["samples"], found["shots"], found["version"]) == (3, 0, 4)
    model, tokenizer = load_model(folder), load_tokenizer(folder).tokenizer
    context = tokenizer.encode("the cat").ids
    dog, cat = score(
        model, [(context, tokenizer.encode(f" {x}").ids) for x in ("dog", "cat")], 2, 256
    )
    is_right = dog.log_likelihood > cat.log_likelihood
    assert found["metrics"]["acc"]["value"] == float(is_right)


@needs_harness
def test_sums_in_a_chat_are_judged_by_what_is_generated(folder: Path, tmp_path: Path, monkeypatch):
    from titan_motif.evaluation import harness_model

    seen = []

    def solve(self, prompts: list[list[int]], settings: dict, seed: int) -> list[str]:
        texts = [self.tok_decode(prompt, skip_special_tokens=False) for prompt in prompts]
        seen.extend(texts)
        pairs = [text.rpartition("What is ")[2].partition("?")[0].split(" + ") for text in texts]
        # Right for all whose first number is even.
        return [f"It is {int(a) + int(b) + int(a) % 2}." for a, b in pairs]

    monkeypatch.setattr(harness_model.HarnessModel, "_generate", solve)
    file = tmp_path / "results.json"
    for more, shots in ((["--chat", "--system", "Add."], 0), ([], 4), (["--num-fewshot", "1"], 1)):
        seen.clear()
        assert evaluate(folder, "--tasks", "sums", "--json", str(file), *more) == 0
        found = json.loads(file.read_text())["tasks"]["sums"]
        rows = sums.held_out_sums()[: corpus_sums.NUM_ASKED]
        share = sum(row["a"] % 2 == 0 for row in rows) / len(rows)
        assert found["metrics"]["exact_match"]["value"] == pytest.approx(share)
        assert (found["samples"], found["shots"]) == (200, shots)
        if shots == 0:
            begin = "<|system|>\nAdd.<|end|>\n<|user|>\nWhat is "
            assert all(x.startswith(begin) and x.endswith("<|assistant|>\n") for x in seen)
        else:
            assert all(x.count("Question: ") == shots + 1 and x.endswith("Answer:") for x in seen)


UNHARNESSED = {
    "unknown": (["--tasks", "hellaswagg"], "does not know (did you mean 'hellaswag'?); `titan-"),
    "code": (["--tasks", "motif2:humaneval"], "'humaneval' runs code that the model has written"),
    "other code": (["--tasks", "mbpp_instruct"], "set HF_ALLOW_CODE_EVAL=1 to allow it"),
    "no data": (["--tasks", "motif2:gsm8k"], "it needs openai/gsm8k from the Hugging Face hub or"),
    "folder": (["--tasks", "sums", "--include-path", "nowhere"], "--include-path is nowhere; a f"),
    "too long": (["--tasks", "sums", "--max-length", "999"], "--max-length is 999; 2 to 256, what"),
    "no documents": (["--tasks", "perplexity"], "name a prepared data set with --data, or leave"),
    "no room": (["--tasks", "arithmetic", "--max-length", "99"], "--max-new-tokens sets fewer"),
}


@needs_harness
@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("file", "file; no folder that can be written to (File exists)"),
        ("file/tb", "file/tb; no folder that can be written to (Not a directory)"),
        ("/proc/tb", "/proc/tb; no folder that can be written to (No such file or directory)"),
    ],
)
def test_where_results_cannot_be_written_is_told_before_a_model_is_read(
    place: str, told: str, folder: Path, monkeypatch, capsys
):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(evaluate_command, "load_model", pytest.fail)
    (folder.parent / "file").touch()
    assert evaluate(folder, "--tasks", "sums", "--tensorboard", place) == 1
    assert capsys.readouterr().err == f"error: --tensorboard is {told}\n"
    folder.rename("model")
    assert evaluate(Path("model"), "--tasks", "sums", "--tensorboard", "tb") == 1
    told = "error: --tensorboard needs a step, and 'model' names none; give --step\n"
    assert capsys.readouterr().err == told
    assert not Path("tb").exists()


@needs_harness
def test_a_step_without_held_out_documents_is_told_the_cure_before_it_is_read(
    folder: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate_command, "load_model", pytest.fail)
    step = tmp_path / "run" / "checkpoint" / folder.name
    step.parent.mkdir(parents=True)
    folder.rename(step)
    data = tmp_path / "data"
    job = f'[training]\ndataset = "prepared"\ndataset_path = "{data}"\n'
    cure = "; name a prepared data set with --data, or leave perplexity out of --tasks\n"

    def told(*more: str) -> str:
        assert evaluate(step, "--tasks", "local", *more) == 1
        return capsys.readouterr().err

    reason = "error: perplexity needs held-out documents, and no run is known that has some"
    assert told() == reason + cure
    (tmp_path / "run" / "config.resolved.toml").write_text(job)
    reason = f"error: {data}/validation/tokens.npy: no such file; a prepared split holds tokens.npy"
    assert told() == reason + cure
    split = write_source(data, tokenizer_folder, ["the rain in spain"])
    np.save(split / "labels.npy", np.load(split / "tokens.npy").astype(np.int32))
    packed = f"{split}/tokens.npy: packed conversations; perplexity needs documents"
    assert told() == f"error: {packed}{cure}"
    assert told("--data", str(data)) == f"error: {packed}\n"


@needs_harness
@pytest.mark.parametrize("name", UNHARNESSED)
def test_what_the_harness_cannot_run_is_one_line(
    name: str, folder: Path, few_tasks, monkeypatch, capsys
):
    import huggingface_hub.constants

    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    arguments, message = UNHARNESSED[name]
    assert evaluate(folder, *arguments) == 1
    error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]


@pytest.mark.slow
@needs_harness
def test_two_processes_find_what_one_does(folder: Path, tokenizer_folder: Path, tmp_path: Path):
    write_source(tmp_path / "web", tokenizer_folder, ["the rain in spain", "a dog", "a cat sees"])
    command = ["-m", "titan_motif.cli", "evaluate", str(folder), "--tasks", "sums,perplexity"]
    command += ["--limit", "7", "--data", str(tmp_path / "web"), "--device", "cpu"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = []
    for number, launcher in enumerate(([], torchrun)):
        file = tmp_path / f"{number}.json"
        words = [sys.executable, *launcher, *command, "--json", str(file)]
        subprocess.run(words, check=True, env={**os.environ, "PYTHONSAFEPATH": "1"})
        found.append(json.loads(file.read_text()))
    assert [figures["ranks"] for figures in found] == [1, 2]
    one, two = (figures["tasks"] for figures in found)
    for name, task in one.items():
        assert two[name]["samples"] == task["samples"]
        for metric, value in task["metrics"].items():
            assert two[name]["metrics"][metric]["value"] == pytest.approx(value["value"], rel=1e-6)
