"""`titan-motif bench block`: the parts that a block's time is told by."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from titan_motif import cli
from titan_motif.bench import block, block_cell
from titan_motif.bench.block_parts import ELEMENTWISE, PARTS, measure_parts
from titan_motif.model import FLAVORS


def shares(function) -> dict[str, float]:
    parts = measure_parts(function, "cpu")
    assert list(parts) == [*PARTS, ELEMENTWISE]
    return {part: ms / sum(parts.values()) for part, ms in parts.items() if ms}


def test_time_goes_to_the_operator_that_asked_for_it():
    x = torch.randn(1024, 1024, requires_grad=True)
    found = shares(lambda: torch.autograd.grad((x @ x).sum(), x))
    assert set(found) == {"products", ELEMENTWISE}
    assert found["products"] > 0.5

    q = torch.randn(1, 4, 512, 64, requires_grad=True)
    found = shares(lambda: torch.autograd.grad(scaled_dot_product_attention(q, q, q).sum(), q))
    # The operators' own products and the autograd engine around them change nothing.
    assert set(found) == {"attention, forward", "attention, backward", ELEMENTWISE}
    assert found["attention, forward"] + found["attention, backward"] > 0.5


@pytest.mark.parametrize(
    ("operator", "part"),
    [
        ("aten::_scaled_mm", "products in FP8"),
        ("aten::mm", "products"),
        ("titan_motif::differential_attention", "attention, forward"),
        ("titan_motif::differential_attention_backward", "attention, backward"),
        ("aten::_scaled_dot_product_cudnn_attention", "attention, forward"),
        ("aten::_scaled_dot_product_cudnn_attention_backward", "attention, backward"),
        ("titan_motif::poly_norm_mul", "PolyNorm and norms"),
        ("titan_motif::poly_norm_backward", "PolyNorm and norms"),
        ("titan_motif::add_rms_norm", "PolyNorm and norms"),
        ("titan_motif::rms_norm_backward", "PolyNorm and norms"),
        ("triton_poi_fused_add_0", None),
        ("aten::copy_", None),
    ],
)
def test_operators_are_of_a_part(operator: str, part: str | None):
    found = [name for name, has in PARTS.items() if has(operator)]
    assert found[:1] == ([] if part is None else [part])


def test_variants_are_measured_told_written_and_drawn(tmp_path: Path, capsys, monkeypatch):
    started = []

    def run_module(module, arguments, timeout):
        started.append(arguments)
        if arguments[-1] == "--variant=fp8":
            return {"error": "FP8 needs a GPU"}
        parts = dict.fromkeys([*PARTS, ELEMENTWISE], 1.5)
        return {"block_ms": 9.25, "tflops": 543.2, "parts_ms": parts, "device": "NVIDIA H200"}

    monkeypatch.setattr(block, "run_module", run_module)
    table, picture = tmp_path / "block.json", tmp_path / "block.png"
    sizes = ["--flavor", "12_7b", "--seq-len", "4096", "--batch", "4"]
    assert cli.main(["bench", "block", *sizes, "--json", str(table), "--png", str(picture)]) == 0
    told = capsys.readouterr()
    assert "NVIDIA H200: a block of 12_7b, 4 x 4096 tokens\n" in told.out
    assert "whole, by itself" in told.out
    assert "9.25" in told.out
    assert told.err == "not measured: fp8: FP8 needs a GPU\n"
    assert [words[-1] for words in started] == [
        "--variant=plain-bf16",
        "--variant=bf16",
        "--variant=fp8",
    ]
    assert started[0][:3] == ["--flavor=12_7b", "--batch=4", "--seq-len=4096"]
    content = json.loads(table.read_text())
    assert content["rows"]["bf16"]["parts_ms"]["products"] == 1.5
    assert content["rows"]["fp8"] == {"error": "FP8 needs a GPU"}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("variant", ["plain-bf16", "fp8"])
def test_a_block_is_measured_as_it_is_trained(variant: str, monkeypatch):
    converted = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    monkeypatch.setattr(block_cell, "BUDGET_MS", 1.0)
    convert = block_cell.convert_to_float8
    monkeypatch.setattr(
        block_cell,
        "convert_to_float8",
        lambda model, recipe, emulate: converted.append(convert(model, recipe, emulate=emulate)),
    )
    args = FLAVORS["debug"]
    row = block_cell.measure_block(args, 1, 32, variant, "rowwise", emulate=True)
    assert len(converted) == (variant == "fp8")
    assert row["block_ms"] > 0
    parts = row["parts_ms"]
    assert all(parts[part] > 0 for part in ("products", "attention, forward", ELEMENTWISE))
    block_flops = 6 * (4 * 160 * 160 + 3 * 160 * args.hidden_dim)  # at least; heads and head too
    assert row["tflops"] * 1e9 * row["block_ms"] / 32 > block_flops / 2


def test_it_fails_where_no_variant_ran(capsys, monkeypatch):
    monkeypatch.setattr(block, "run_module", lambda *arguments: {"error": "timed out after 1 s"})
    assert cli.main(["bench", "block", "--flavor", "debug"]) == 1
    assert capsys.readouterr().err.endswith("error: no variant ran\n")
