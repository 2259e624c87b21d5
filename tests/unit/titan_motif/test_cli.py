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


def test_newton_schulz_benchmark_writes_what_it_measured(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "table.json"
    assert cli.main(["bench", "newton-schulz", "--flavor", "debug", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "on a CPU these times mean nothing" in printed
    assert "all matrices of one of 8 ranks of debug" in printed
    content = json.loads(file.read_text())
    assert {line["contender"] for line in content["results"]} >= {"torch.optim.Muon", "ours"}
    for contender, total in content["one_rank"].items():
        lines = [line for line in content["results"] if line["contender"] == contender]
        assert total["ms"] == pytest.approx(sum(line["ms"] for line in lines))
    for line in content["results"]:
        m, n = sorted((line["rows"], line["columns"]))
        flops = 5 * (2 * m**3 + 4 * m * m * n + 2 * m * n + 3 * m * m) * line["batch"]
        assert line["nominal_tflops"] == pytest.approx(flops / line["ms"] / 1e9)
        assert 0.1 < line["smallest"] < 1 < line["largest"] < 1.25
        assert line["distance"] < 0.25


def test_newton_schulz_benchmark_of_given_shapes(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "table.json"
    given = ["--shapes", "16x24", "40x8", "--batch", "3", "--no-quality", "--json", str(file)]
    assert cli.main(["bench", "newton-schulz", *given]) == 0
    assert "one of 8 ranks" not in capsys.readouterr().out
    lines = json.loads(file.read_text())["results"]
    shapes = {(line["batch"], line["rows"], line["columns"]) for line in lines}
    assert shapes == {(3, 16, 24), (3, 40, 8)}
    assert all(line["distance"] is None for line in lines)
    assert cli.main(["bench", "newton-schulz", "--shapes", "16"]) == 1
    expected = "error: --shapes has '16'; ROWSxCOLUMNS is needed, such as 4096x16384\n"
    assert capsys.readouterr().err == expected


def test_the_plain_newton_schulz_is_that_of_torch():
    from torch.optim._muon import _zeropower_via_newtonschulz

    from titan_motif.bench.newton_schulz import EPS, plain
    from titan_motif.components.muon import named_coefficients

    coefficients = named_coefficients("muon")
    for shape in ((12, 30), (30, 12)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        theirs = _zeropower_via_newtonschulz(matrix, coefficients[0], len(coefficients), EPS)
        assert torch.equal(plain(matrix, coefficients), theirs)
