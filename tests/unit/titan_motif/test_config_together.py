"""Settings that do nothing, or end the run, beside others."""

import json
from pathlib import Path

import pytest

import titan_motif.device  # noqa: F401
from titan_motif import check_config
from titan_motif.config_together import NEEDS, NOTHING_IS_SAVED

ROOT = Path(__file__).resolve().parents[3]
AC = "activation_checkpoint"
ON = ["--checkpoint.enable"]
OFF = ["--checkpoint.no_enable"]

BAD = {
    "steps that are not saved": (
        [*OFF, "--checkpoint.load_step=5"],
        "checkpoint.load_step is 5; it needs checkpoint.enable to be true",
    ),
    "a last one that is not saved": (
        [*OFF, "--checkpoint.last_save_model_only"],
        "checkpoint.last_save_model_only is true; it needs checkpoint.enable to be true",
    ),
    "a dtype of a whole step": (
        ["--checkpoint.export_dtype=bfloat16"],
        "export_dtype is 'bfloat16'; it needs checkpoint.last_save_model_only to be true",
    ),
    "what is left out of nothing": (
        [*OFF, "--checkpoint.exclude_from_loading=optimizer"],
        "exclude_from_loading is ['optimizer']; it needs checkpoint.enable to be true",
    ),
    "a seed of two": (
        [*ON, "--checkpoint.create_seed_checkpoint"],
        "create_seed_checkpoint is true; it needs one process, and there are 2: NGPU=1",
    ),
    "a first step of loading": (
        [*ON, "--checkpoint.load_only", "--checkpoint.enable_first_step_checkpoint"],
        "enable_first_step_checkpoint is true; it needs checkpoint.load_only to be false",
    ),
    "an option without its mode": (
        [f"--{AC}.mode=full", f"--{AC}.selective_ac_option=2"],
        f"selective_ac_option is '2'; it needs {AC}.mode to be 'selective'",
    ),
    "more blocks than there are": (
        [f"--{AC}.mode=selective", f"--{AC}.selective_ac_option=5"],
        "selective_ac_option is '5'; there are 4 blocks, none of which it would reach: 1 to 4",
    ),
    "a digit of another script": (
        [f"--{AC}.mode=selective", f"--{AC}.selective_ac_option=\u0663"],
        "selective_ac_option is '\u0663'; 'products', 'op' or a positive integer is needed",
    ),
    "a budget without its mode": (
        [f"--{AC}.memory_budget=0.25"],
        f"memory_budget is 0.25; it needs {AC}.mode to be 'memory_budget'",
    ),
    "nothing compiled": (
        ["--compile.enable", "--compile.components="],
        "compile.components is []; compile.enable is true: 'model' or 'loss' is needed",
    ),
    "warned of nothing": (
        ["--debug.deterministic_warn_only"],
        "deterministic_warn_only is true; it needs debug.deterministic to be true",
    ),
    "a second of patience": (
        ["--watchdog.stall_seconds=0.5"],
        "stall_seconds is 0.5; -1, or at least 1 and less than comm.train_timeout_seconds (600)",
    ),
    "patience that ends too late": (
        ["--watchdog.stall_seconds=40", "--comm.train_timeout_seconds=45"],
        "stall_seconds is 40; it needs comm.train_timeout_seconds, 45, to be at least 56: other",
    ),
    "slow patience that ends too late": (
        [
            "--watchdog.slow_seconds=50",
            "--watchdog.stall_seconds=5",
            "--comm.init_timeout_seconds=53",
        ],
        "slow_seconds is 50; it needs comm.init_timeout_seconds, 53, to be at least 54: other",
    ),
    "names of both": (
        [
            "--optimizer.muon.muon_patterns=layers.0.*proj*",
            "--optimizer.muon.adamw_patterns=layers.*.q_proj.*",
        ],
        "is claimed by the muon pattern 'layers.0.*proj*' and by the adamw pattern",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_answered_with_one_line(case: str, capsys, monkeypatch):
    arguments, told = BAD[case]
    monkeypatch.chdir(ROOT)
    job = ["--world-size", "2", "--job.config_file", "tests/plain.toml"]
    assert check_config.main([*job, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: command line: ")
    assert told in line


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--{AC}.mode=selective", f"--{AC}.selective_ac_option=4"],
        [f"--{AC}.mode=memory_budget", f"--{AC}.memory_budget=0.25", "--compile.enable"],
        ["--checkpoint.last_save_model_only", "--checkpoint.export_dtype=bfloat16"],
        [*OFF, "--checkpoint.keep_latest_k=0", "--checkpoint.interval=7"],
        ["--watchdog.stall_seconds=1"],
        ["--validation.freq=7", "--validation.seq_len=64", "--validation.enable=false"],
        ["--step_check.spike_z_score=4", "--step_check.spike_window=7"],
        [*OFF, "--moving_average.num_checkpoints=2", "--checkpoint.async_mode=async"],
        ["--watchdog.enable=false", "--profiling.profile_freq=7", "--evaluation.freq=7"],
        ["--watchdog.stall_seconds=40", "--comm.train_timeout_seconds=56"],
    ],
)
def test_what_does_is_accepted(arguments: list[str], monkeypatch):
    monkeypatch.chdir(ROOT)
    job = ["--world-size", "2", "--job.config_file", "tests/plain.toml"]
    assert check_config.main([*job, *arguments]) == 0


def test_the_manual_lists_what_is_refused_and_what_it_needs():
    text = (ROOT / "docs/configuration.md").read_text()
    table = text[text.index("| what | is refused unless |") :].partition("\n\n")[0]
    told = set()
    for row in table.splitlines()[2:-1]:  # the last one is of whole sections
        keys, need = row.strip("| ").split(" | ")
        told |= {(key, need) for key in keys.split(", ")}
    needed = {(key, f"{other} = {json.dumps(value)}") for key, (other, value) in NEEDS.items()}
    needed |= {(key, "checkpoint.load_only = false") for key in NOTHING_IS_SAVED}
    assert told == {(f"`{key}`", f"`{need}`") for key, need in needed}
