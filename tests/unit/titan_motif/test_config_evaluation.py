"""Settings of evaluation that cannot work end in one line, before any process starts."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import check_config

ON = "[evaluation]\nenable = true\n"
BAD = {
    "freq": ("[evaluation]\nfreq = 0", "evaluation.freq is 0; at least 1 is needed"),
    "batch": ("[evaluation]\nbatch_size = 0", "evaluation.batch_size is 0; at least 1 is needed"),
    "time-out": ("[evaluation]\ntimeout_seconds = 0", "timeout_seconds is 0; at least 1 is needed"),
    "no tasks": (
        ON,
        "evaluation.tasks is []; a task is needed: `titan-motif evaluate --list-",
    ),
    "empty": (
        f'{ON}tasks = [","]',
        "evaluation.tasks is empty; a task is needed: `titan-motif",
    ),
    "no preset": (
        f'{ON}tasks = ["sums", "motif2:gsm8"]',
        "evaluation.tasks has 'motif2:gsm8' (did you mean 'gsm8k'?); motif2: goes with gsm8k, math",
    ),
    "limit": (f'{ON}tasks = ["sums"]\nlimit = 0', "evaluation.limit is 0; at least 1 is needed"),
    "shots": (f'{ON}tasks = ["sums"]\nnum_fewshot = -1', "num_fewshot is -1; at least 0 is needed"),
    "new": (
        f'{ON}tasks = ["sums"]\nmax_new_tokens = 0',
        "max_new_tokens is 0; at least 1 is",
    ),
    "length": (
        f'{ON}tasks = ["sums"]\nmax_length = 2049',
        "evaluation.max_length is 2049; 2 to 2048, what debug is meant for, is allowed",
    ),
}


def refusal(text: str, tmp_path: Path, capsys) -> str:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    assert check_config.main(["--world-size", "2", "--job.config_file", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return re.sub(rf"^error: {re.escape(str(file))}:\d+: ", "", line)


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_evaluated_is_answered_with_one_line(case: str, tmp_path: Path, capsys):
    text, message = BAD[case]
    assert message in refusal(text, tmp_path, capsys)


def test_without_the_harness_one_line_tells_the_extra(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "titan_motif.harness.package", raising=False)
    line = refusal(f'{ON}tasks = ["sums"]', tmp_path, capsys)
    assert line.startswith("evaluation.enable is true; lm-evaluation-harness is not installed")
    assert line.endswith("pip install -e '.[eval]' brings it")


def test_a_file_is_checked_for_another_machine_without_the_harness(tmp_path: Path, monkeypatch):
    from titan_motif.config_loading import load_config

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "titan_motif.harness.package", raising=False)
    file = tmp_path / "job.toml"
    file.write_text(f'{ON}tasks = ["mmlu"]')
    config = load_config(["--job.config_file", str(file)], None, runs_here=False)
    assert config.evaluation.tasks == ["mmlu"]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval")
def test_a_task_that_the_harness_does_not_know(tmp_path: Path, capsys):
    line = refusal(f'{ON}tasks = ["sums", "hellaswagg"]', tmp_path, capsys)
    assert line.startswith(
        "evaluation.tasks has 'hellaswagg', which the harness does not know (did you mean "
        "'hellaswag'?); `titan-motif evaluate --list-tasks` tells presets and local tasks"
    )


def test_a_chat_needs_a_template_that_can_be_used(tmp_path: Path, capsys):
    (tmp_path / "tokenizer.json").write_text("{}")
    job = f'[model]\nhf_assets_path = "{tmp_path}"\n{ON}tasks = ["sums"]\nchat = true'
    assert refusal(job, tmp_path, capsys).startswith("evaluation.chat is true; ")
