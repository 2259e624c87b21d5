"""The command line: what it lists, how it fails, and the benchmarks' figures."""

import json
from pathlib import Path

import pytest
import torch

from titan_motif import cli


def test_without_a_command_it_lists_them(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)
    assert cli.main(["bench", "--help"]) == 0
    assert "bench rms-norm" in capsys.readouterr().out
    assert cli.main(["bench", "sums"]) == 2
    expected = f"error: no command 'bench sums'; one of {', '.join(cli.COMMANDS)} is needed\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*name.split(), "--help"])
    assert exit_.value.code == 0
    assert f"Example: titan-motif {name} " in capsys.readouterr().out


def test_what_would_fail_at_the_end_is_refused_before_the_start(capsys):
    assert cli.main(["bench", "rms-norm", "--json", "/nowhere/table.json"]) == 1
    assert capsys.readouterr().err.endswith("the folder /nowhere does not exist\n")
    assert cli.main(["bench", "poly-norm", "--widths", "8", "100000"]) == 1
    assert "--widths has 100000; at most 65536" in capsys.readouterr().err


def test_a_failure_on_the_way_is_one_line(capsys, monkeypatch):
    from titan_motif.bench import rms_norm

    def run_out(options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")

    monkeypatch.setattr(rms_norm, "main", run_out)
    assert cli.main(["bench", "rms-norm"]) == 1
    assert capsys.readouterr().err == "error: OutOfMemoryError: CUDA out of memory.\n"


def test_a_mistake_is_one_line_and_debug_shows_where(capsys):
    arguments = ["bench", "rms-norm", "--widths", "0"]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == "error: --widths has 0; positive numbers are needed\n"
    with pytest.raises(ValueError, match="--widths has 0"):
        cli.main([*arguments, "--debug"])


@pytest.mark.parametrize(
    ("command", "operators", "bound"),
    [
        ("poly-norm", {"poly_norm": (2, 3), "poly_norm_mul": (3, 5)}, 1e-4),
        ("rms-norm", {"rms_norm": (2, 3), "add_rms_norm": (4, 4)}, 1e-4),
    ],
)
def test_norm_benchmarks_write_what_they_measured(
    command: str, operators: dict, bound: float, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "table.json"
    arguments = ["--widths", "16", "24", "--tokens", "8", "--dtype", "float32", "--json", str(file)]
    assert cli.main(["bench", command, *arguments]) == 0
    assert "on a CPU these times mean nothing" in capsys.readouterr().out
    content = json.loads(file.read_text())
    assert content["dtype"] == "float32"
    assert len(content["results"]) >= 2 * 2 * 3 * 2  # operators, widths, contenders, directions
    for line in content["results"]:
        transfers = operators[line["operator"]][line["direction"] == "backward"]
        num_bytes = transfers * 8 * line["width"] * 4
        assert line["gb_per_second"] == pytest.approx(num_bytes / line["ms"] / 1e6)
        expected = line["gb_per_second"] / content["copy_gb_per_second"]
        assert line["fraction_of_copy"] == pytest.approx(expected)
        assert 0 <= line["error"] < bound  # sums over tokens may cancel
    assert {line["contender"] for line in content["results"]} >= {"eager", "torch.compile", "ours"}
