"""The command line: what it lists, how it fails, and the benchmarks' figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from titan_motif import cli, kernels


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
    assert cli.main(["bench", "rms-norm", "--json", "/proc/table.json"]) == 1
    told = "error: --json is /proc/table.json; it cannot be written (No such file or directory)\n"
    assert capsys.readouterr().err == told
    assert cli.main(["bench", "poly-norm", "--widths", "8", "100000"]) == 1
    assert "--widths has 100000; at most 65536" in capsys.readouterr().err


def test_files_to_be_written_are_left_as_they_were_until_they_are(tmp_path: Path, monkeypatch):
    from titan_motif.bench import rms_norm

    seen = []
    monkeypatch.setattr(rms_norm, "main", lambda options: seen.append(os.listdir(tmp_path)))
    file = tmp_path / "table.json"
    assert cli.main(["bench", "rms-norm", "--json", str(file)]) == 0
    file.write_text("earlier")
    assert cli.main(["bench", "rms-norm", "--json", str(file)]) == 0
    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["bench", "rms-norm", "--json", str(tmp_path / "pipe")]) == 0
    assert [sorted(names) for names in seen] == [[], ["table.json"], ["pipe", "table.json"]]
    assert file.read_text() == "earlier"


@pytest.mark.parametrize("arguments", [[], ["evaluate", "--list-tasks"]], ids=["usage", "table"])
def test_output_that_nobody_reads_ends_quietly(arguments: list[str]):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "titan_motif.cli", *arguments]
    finished = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (1, "")


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


def test_loss_benchmark_judges_what_it_times(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "table.json"
    sizes = ["--tokens", "40", "--dim", "24", "--vocab", "96", "--chunk-tokens", "7", "40"]
    assert cli.main(["bench", "loss", *sizes, "--json", str(file)]) == 0
    assert "on a CPU these times mean nothing" in capsys.readouterr().out
    content = json.loads(file.read_text())
    assert (content["tokens"], content["dim"], content["vocab"]) == (40, 24, 96)
    lines = {line["contender"]: line for line in content["results"]}
    assert {"F.cross_entropy, eager", "ours, compiled, 7 tokens at a time"} <= lines.keys()
    for line in lines.values():
        assert line["ms"] > 0
        assert line["peak_gib"] is None
        assert 1e-5 < line["error"] < 8e-3  # bfloat16, against float64
    assert cli.main(["bench", "loss", "--chunk-tokens", "0"]) == 1
    assert capsys.readouterr().err == "error: --chunk-tokens has 0; positive numbers are needed\n"


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


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_attention_benchmark_writes_what_it_measured(
    dtype: str, tmp_path: Path, capsys, monkeypatch
):
    from titan_motif.bench.attention import Case

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "table.json"
    arguments = ["--lengths", "8", "16", "--tokens", "16", "--packed", "5", "--dtype", dtype]
    assert cli.main(["bench", "attention", *arguments, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "on a CPU these times mean nothing" in printed
    assert "not measured: SDPA, two calls, 2 x 8: No available kernel" in printed
    problem = kernels.attention_problem(getattr(torch, dtype), 16, torch.device("cpu"))
    assert (f"not measured: ours, 2 x 8: {problem}\n" in printed) == (problem is not None)

    content = json.loads(file.read_text())
    assert content["dtype"] == dtype
    assert content["heads"] == {"groups": 2, "pairs": 2, "ratio": 4, "head_dim": 16}
    everywhere = {"SDPA, four calls", *(["ours"] if problem is None else [])}
    maxima = {f"SDPA, four calls + {word}" for word in ("maxima", "bounds")}
    lines = content["results"]
    for case in (
        Case.dense(2, 8),
        Case.dense(1, 16),
        Case.packed(2, 8, mean_length=5),
        Case.packed(1, 16, mean_length=5),
    ):
        here = {
            (line["contender"], line["direction"]): line
            for line in lines
            if (line["seq"], line["packed"]) == (case.seq, case.is_packed)
        }
        found = {contender for contender, _ in here}
        assert found == everywhere | (set() if case.is_packed else {"plain SDPA"} | maxima)
        assert len(here) == 3 * len(found)
        for contender in found:
            ways = [here[contender, way] for way in ("forward", "backward", "both")]
            width = 16 if contender == "plain SDPA" else 32
            products = 2 * case.num_pairs * 10
            flops = [products * (16 + width), products * (3 * 16 + 2 * width)]
            for line, expected in zip(ways, [*flops, sum(flops)], strict=True):
                assert line["tflops"] == pytest.approx(expected / line["ms"] / 1e9)
                assert line["mean_document_length"] == case.mean_document_length
                assert (line["batch"], line["peak_mb"]) == (case.batch, None)
            assert ways[2]["ms"] == pytest.approx(ways[0]["ms"] + ways[1]["ms"])
    assert len(lines) == 3 * (2 * len(everywhere | maxima | {"plain SDPA"}) + 2 * len(everywhere))


def test_attention_benchmark_counts_what_its_documents_allow():
    from titan_motif.bench.attention import Case
    from titan_motif.kernels.documents import allowed_keys

    dense, packed = Case.dense(3, 40), Case.packed(3, 40, mean_length=7)
    assert dense.num_pairs == 3 * 40 * 41 // 2
    assert dense.mean_document_length is None
    assert sum(packed.lengths) == 3 * 40
    assert packed == Case.packed(3, 40, mean_length=7)
    assert 4 < packed.mean_document_length < 12
    assert packed.num_pairs == allowed_keys(packed.documents("cpu")).sum()
    assert Case.packed(1, 10_000, mean_length=100).mean_document_length == pytest.approx(100, 0.3)


def test_attention_benchmark_can_leave_documents_out_and_change_heads(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "table.json"
    heads = ["--flavor", "100m_gda", "--ratio", "2", "--head-dim", "8"]
    sizes = ["--lengths", "4", "--tokens", "4", "--packed", "0", "--json", str(file)]
    assert cli.main(["bench", "attention", *heads, *sizes]) == 0
    content = json.loads(file.read_text())
    assert content["heads"] == {"groups": 6, "pairs": 3, "ratio": 2, "head_dim": 8}
    assert content["dtype"] == "bfloat16"
    assert not any(line["packed"] for line in content["results"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "24", "--tokens", "64"], "--lengths has 24; a divisor of --tokens 64 is"),
        (["--lengths", "0"], "--lengths has 0; a divisor of --tokens"),
        (["--tokens", "0"], "a divisor of --tokens 0 is needed"),
        (["--packed", "-1"], "--packed is -1; 0 or more is needed"),
        (["--ratio", "0"], "--ratio is 0; a positive number is needed"),
        (["--flavor", "100m_standard"], "--flavor is '100m_standard'; one of debug, 100m_gda, "),
        (["--json", "/nowhere/table.json"], "--json is /nowhere/table.json; the folder /nowhere"),
    ],
)
def test_attention_benchmark_refuses_in_one_line(arguments: list[str], message: str, capsys):
    assert cli.main(["bench", "attention", *arguments]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_attention_benchmark_compares_what_computes_the_same(monkeypatch):
    from titan_motif.bench import attention_peers as peers
    from titan_motif.bench.attention import Case

    generator = torch.Generator().manual_seed(0)

    def draw(num_heads: int):
        return torch.randn(2, 12, num_heads, 8, generator=generator, dtype=torch.float64)

    # Two groups share each of the two pairs.
    q, k, v, lam = draw(12), draw(4), draw(4), torch.tensor(0.3, dtype=torch.float64)
    exact = kernels.grouped_differential_attention(q, k, v, lam, 2)
    monkeypatch.setattr(peers, "WIDE_BACKENDS", [SDPBackend.MATH])
    torch.testing.assert_close(peers.two_calls(q, k, v, lam, 2), exact)

    def varlen(q, k, v, q_begins, k_begins, max_q, max_k, *, window_size, enable_gqa):
        assert (window_size, enable_gqa, max_q, max_k) == ((-1, 0), True, 7, 7)
        assert torch.equal(q_begins, k_begins)
        parts = q_begins.long().diff().tolist()
        each = zip(*(x.transpose(0, 1).split(parts, 1) for x in (q, k, v)), strict=True)
        outs = [
            F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True) for one in each
        ]
        return torch.cat(outs, 1).transpose(0, 1)

    case = Case(2, 12, (5, 7, 3, 2, 7), is_packed=True)
    begins = torch.tensor([0, 5, 12, 15, 17, 24], dtype=torch.int32)
    exact = kernels.grouped_differential_attention(q, k, v, lam, 2, case.documents("cpu"))
    monkeypatch.setattr(peers, "varlen_attn", varlen)
    found = peers.four_varlen_calls(q, k, v, lam, begins, longest=7, ratio=2)
    torch.testing.assert_close(found, exact)
