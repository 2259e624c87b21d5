"""`titan-motif study compile`: its axes, what it keeps, what it writes, and how cells fail."""

import csv
import json
import os
import select
from pathlib import Path

import pytest
import torch

from titan_motif import cli
from titan_motif.study import compile as study
from titan_motif.study import runner, workload
from titan_motif.study.axes import AXES, Cell, cells_of

FIGURES = {
    "tokens_per_second": 29_432.4,
    "tflops": 561.2,
    "mfu": 0.567,
    "step_ms": 556.7,
    "step_ms_min": 555.0,
    "step_ms_max": 560.0,
    "forward_backward_ms": 500.1,
    "optimizer_ms": 40.2,
    "peak_memory_gib": 65.43,
    "peak_reserved_gib": 70.0,
    "compile_seconds": 31.2,
    "dynamo_seconds": 30.0,
    "graph_breaks": 0,
    "graphs": 3,
    "recompiles": 0,
    "final_loss": 11.5,
    "parameters": 4_000_000_000,
    "tokens_per_step": 16_384,
}
TWO = "eager/torch/bf16/none/sdpa,compile/torch/rowwise/full/sdpa"


# ---- axes and workload


def test_the_axes_make_every_combination_once():
    every = cells_of({axis: ",".join(words) for axis, words in AXES.items()}, "")
    assert len(every) == len(set(every)) == 2 * 2 * 4 * 4 * 2
    axes = {"modes": "compile", "kernels": "torch,triton", "precision": "bf16"}
    axes |= {"checkpointing": "op,op", "attention": "triton"}
    assert list(map(str, cells_of(axes, ""))) == [
        "compile/torch/bf16/op/triton",
        "compile/triton/bf16/op/triton",
    ]


def test_cells_can_be_named():
    every = {axis: ",".join(words) for axis, words in AXES.items()}
    assert cells_of(every, TWO) == [
        Cell("eager", "torch", "bf16", "none", "sdpa"),
        Cell("compile", "torch", "rowwise", "full", "sdpa"),
    ]


def test_a_cell_is_settings_of_a_job():
    converters = "--model.converters=quantize.linear.float8"
    assert Cell("eager", "torch", "bf16", "none", "sdpa").overrides(emulate=True) == [
        "--compile.enable=false",
        "--model.kernels=torch",
        "--model.attention=sdpa",
        "--model.converters=",
        "--activation_checkpoint.mode=none",
    ]
    assert Cell("compile", "triton", "rowwise", "products", "triton").overrides(emulate=True) == [
        "--compile.enable=true",
        "--model.kernels=triton",
        "--model.attention=triton",
        converters,
        "--quantize.linear.float8.recipe_name=rowwise",
        "--quantize.linear.float8.emulate=true",
        "--activation_checkpoint.mode=selective",
        "--activation_checkpoint.selective_ac_option=products",
    ]


@pytest.mark.parametrize("axis", ["precision", "checkpointing"])
def test_every_cell_is_a_job_that_loads(axis: str):
    from titan_motif.config_loading import load_config

    base = workload.choose_workload("debug").overrides()
    for word in AXES[axis]:
        cell = Cell("compile", "torch", "bf16", "none", "sdpa")._replace(**{axis: word})
        config = load_config([*base, *cell.overrides(emulate=True)], 1, runs_here=False)
        assert config.compile.enable
        assert (config.model.converters != []) == (cell.precision != "bf16")
        assert (config.activation_checkpoint.mode != "none") == (cell.checkpointing != "none")


def test_settings_of_fp8_are_left_to_the_cells_that_have_it(tmp_path: Path):
    from titan_motif.config import Float8Linear
    from titan_motif.config_loading import load_config

    file = tmp_path / "job.toml"
    file.write_text(
        """
[model]
name = "motif2"
flavor = "debug"
converters = ["quantize.linear.float8"]
[quantize.linear.float8]
recipe_name = "tensorwise"
enable_fsdp_float8_all_gather = true
emulate = true
"""
    )
    skipped = "quantize.linear.float8.filter_fqns=k_proj,layers.0."
    chosen = workload.choose_workload(config=file, more=[skipped])
    found = {}
    for precision in ("bf16", "tensorwise"):
        cell = Cell("compile", "torch", precision, "none", "sdpa")
        chosen.check_more(cell.overrides(emulate=True))
        settings = [*chosen.overrides(), *cell.resets(), *cell.overrides(emulate=True)]
        found[precision] = load_config(settings, 1, runs_here=False).quantize.linear.float8
    assert found["bf16"] == Float8Linear()
    assert found["tensorwise"].filter_fqns == ["k_proj", "layers.0."]
    assert found["tensorwise"].enable_fsdp_float8_all_gather


def test_a_workload_fits_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    large = workload.choose_workload()
    assert (large.flavor, large.layers, large.seq_len, large.batch) == ("12_7b", 8, 4096, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = workload.choose_workload(layers=2)
    assert (small.flavor, small.layers, small.seq_len, small.batch) == ("debug", 2, 128, 2)
    of_a_file = workload.choose_workload(config=Path("train_configs/debug.toml"))
    assert "--job.config_file=train_configs/debug.toml" in of_a_file.overrides()
    assert not any("seq_len" in one or "flavor" in one for one in of_a_file.overrides())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "fast"], "--modes has 'fast'; of eager, compile any are allowed"),
        (["--cells", "eager/torch"], "--cells has 'eager/torch'; modes/kernels/precision/"),
        (["--cells", "eager/torch/int8/none/sdpa"], "'int8' is no precision: bf16, rowwise_w"),
        (["--cells", TWO, "--modes", "eager"], "--modes and --cells are given"),
        (["--flavor", "7b"], "--flavor is '7b'; one of debug, "),
        (["--flavor", "debug", "--config", "x.toml"], "one of them is allowed"),
        (["--layers", "0"], "--layers is 0; at least 1 is needed"),
        (["--seq-len", "-3"], "--seq-len is -3; at least 1 is needed"),
        (["--warmup", "0"], "--warmup is 0; at least 1 is needed"),
        (["--timeout", "0"], "--timeout is 0.0; more than 0 is needed"),
        (["--override", "model.kernels=torch"], "an option of its own decides that"),
        (["--override", "training.steps=5"], "an option of its own decides that"),
        (["--override", "training.stepz=5"], "training.stepz is not a setting"),
        (["--config", "none.toml"], "none.toml"),
    ],
)
def test_a_study_refuses_in_one_line(arguments: list[str], message: str, tmp_path: Path, capsys):
    command = ["study", "compile", "--output", str(tmp_path / "out"), *arguments]
    assert cli.main(command) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_the_built_in_corpus_is_made_where_it_is_missing(tmp_path: Path, monkeypatch):
    made = []
    monkeypatch.setattr(workload, "prepare", lambda *arguments: made.append(arguments))
    for folder in (tmp_path, tmp_path / "new"):
        more = [f"training.dataset_path={folder}"]
        workload.prepare_data([workload.choose_workload("debug", more=more).overrides()])
    assert made == [(str(tmp_path / "new"), 1024)]


def test_settings_of_fp8_need_no_file(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(study, "run_cell", lambda overrides, conditions: dict(FIGURES))
    monkeypatch.setattr(workload, "prepare", lambda *arguments: None)
    skipped = "quantize.linear.float8.filter_fqns=k_proj"
    options = ["--emulate", "--override", skipped]
    both = "eager/torch/bf16/none/sdpa,eager/torch/tensorwise/none/sdpa"
    assert run_study(tmp_path, "--cells", both, *options) == 0
    wrong = "quantize.linear.float8.filter_fqns=no_proj"
    fp8 = ["--cells", "eager/torch/tensorwise/none/sdpa", "--emulate", "--override", wrong]
    assert run_study(tmp_path / "wrong", *fp8) == 1


def test_a_study_in_which_no_cell_ran_has_failed(tmp_path: Path, capsys, measured):
    assert run_study(tmp_path, "--cells", "eager/torch/rowwise/none/sdpa", "--emulate") == 1
    told = capsys.readouterr()
    assert told.err.endswith("error: no cell ran\n")
    assert "no FP8 | here" in (tmp_path / "results.md").read_text()


# ---- what a study keeps and writes


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Cells that were run; those in FP8 fail."""
    seen: list[str] = []

    def run(overrides, conditions):
        is_fp8 = "--model.converters=" not in overrides
        seen.append("fp8" if is_fp8 else "bf16")
        return {"error": "no FP8 | here"} if is_fp8 else dict(FIGURES)

    monkeypatch.setattr(study, "run_cell", run)
    monkeypatch.setattr(study, "prepare_data", lambda jobs: None)
    return seen


def run_study(folder: Path, *more: str) -> int:
    return cli.main(["study", "compile", "--flavor", "debug", "--output", str(folder), *more])


def test_a_study_writes_its_tables_and_goes_on(tmp_path: Path, capsys, measured):
    assert run_study(tmp_path, "--cells", TWO) == 0
    told = capsys.readouterr()
    assert "1/2  eager/torch/bf16/none/sdpa  29,432 tokens/s  561 TFLOPS  MFU 56.7%" in told.err
    assert "2/2  compile/torch/rowwise/full/sdpa  failed: no FP8 | here" in told.err
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["cells"]["eager/torch/bf16/none/sdpa"] == FIGURES
    assert content["settings"]["torch"] == torch.__version__
    assert content["environment"]["versions"]["torchao"]

    lines = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [line["mode"] for line in lines] == ["eager", "compile"]
    assert float(lines[0]["tokens_per_second"]) == FIGURES["tokens_per_second"]
    assert (lines[1]["tokens_per_second"], lines[1]["error"]) == ("", "no FP8 | here")

    table = (tmp_path / "results.md").read_text()
    assert table in told.out
    row = "| eager | torch | bf16 | none | sdpa | 29,432 | 561 | 56.7 | 556.7 | 500.1 | 40.2 |"
    assert f"{row} 65.4 | 31.2 | 3 | 0 | 0 | 11.5000 |" in table
    assert "- `compile/torch/rowwise/full/sdpa`: no FP8 | here" in table
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")

    assert run_study(tmp_path, "--cells", f"{TWO},eager/torch/bf16/op/sdpa") == 0
    assert "2 of 3 cells are there already" in capsys.readouterr().err
    assert measured == ["bf16", "fp8", "bf16"]
    assert len(json.loads((tmp_path / "results.json").read_text())["cells"]) == 3
    assert run_study(tmp_path, "--cells", TWO, "--retry") == 0
    assert measured[3:] == ["fp8"]
    assert run_study(tmp_path, "--cells", TWO, "--fresh") == 0
    assert measured[4:] == ["bf16", "fp8"]
    assert len(json.loads((tmp_path / "results.json").read_text())["cells"]) == 2


def test_a_killed_study_has_kept_what_was_finished(tmp_path: Path, monkeypatch, measured):
    finish = study.run_cell

    def killed(overrides, conditions):
        if "--model.converters=" not in overrides:
            raise KeyboardInterrupt
        return finish(overrides, conditions)

    monkeypatch.setattr(study, "run_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, "--cells", TWO)
    monkeypatch.setattr(study, "run_cell", finish)
    assert run_study(tmp_path, "--cells", TWO) == 0
    assert measured == ["bf16", "fp8"]


def test_results_of_other_settings_are_not_mixed(tmp_path: Path, capsys, measured):
    assert run_study(tmp_path, "--cells", TWO) == 0
    capsys.readouterr()
    assert run_study(tmp_path, "--cells", TWO, "--seq-len", "64") == 1
    file = tmp_path / "results.json"
    expected = f"error: {file}: its results are of seq_len 128, these would be of 64; --fresh "
    assert capsys.readouterr().err.startswith(expected)
    content = json.loads(file.read_text())
    content["settings"]["device"] = "another"
    file.write_text(json.dumps(content))
    assert run_study(tmp_path, "--cells", TWO) == 1
    assert "its results are of device 'another', these would be of" in capsys.readouterr().err
    file.write_text("[]")
    assert run_study(tmp_path, "--cells", TWO) == 1
    assert capsys.readouterr().err == f"error: {file}: holds no results of a study\n"
    assert len(measured) == 2


def test_what_a_machine_cannot_do_is_a_row_without_a_process(monkeypatch):
    def start(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(workload, "run_module", start)
    conditions = workload.Conditions(1, 1, 10.0, is_cold=True)
    base = workload.choose_workload("debug").overrides()
    cell = Cell("eager", "triton", "bf16", "none", "sdpa")
    row = workload.run_cell([*base, *cell.overrides(False)], conditions)
    if not torch.cuda.is_available():
        assert row["error"].startswith("command line: model.kernels is 'triton'; that needs a GPU")


# ---- processes


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch):
    """Run a text as a module's, with so many seconds for it."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(text: str, seconds: float = 1.0, **options):
        (tmp_path / "measuring.py").write_text(f"import json, os, sys, time\n{text}\n")
        return runner.run_module("measuring", ["--a", "b"], seconds, **options)

    return run


def test_a_process_that_takes_too_long_is_a_row(run_script):
    assert run_script("time.sleep(60)") == {"error": "timed out after 1 s"}


def test_a_process_that_dies_is_a_row(run_script):
    assert run_script("os.kill(os.getpid(), 9)") == {"error": "killed by SIGKILL"}
    text = "print('begin')\nsys.exit('no such thing')"
    assert run_script(text) == {"error": "ended with exit code 1: no such thing"}


def test_a_process_is_one_rank_and_may_find_nothing_compiled(run_script):
    names = "RANK WORLD_SIZE LOCAL_RANK MASTER_PORT TRITON_CACHE_DIR TORCHINDUCTOR_CACHE_DIR"
    write = f"""
row = {{name: os.environ.get(name) for name in "{names}".split()}}
open(sys.argv[1], "w").write(json.dumps(row | {{"arguments": sys.argv[2:]}}))
sys.exit(3)  # what comes after the row does not count
"""
    row = run_script(write, is_cold=True)
    assert (row["RANK"], row["WORLD_SIZE"], row["LOCAL_RANK"]) == ("0", "1", "0")
    assert row["arguments"] == ["--a", "b"]
    assert not Path(row["TRITON_CACHE_DIR"]).parent.exists()
    assert Path(row["TORCHINDUCTOR_CACHE_DIR"]).parent == Path(row["TRITON_CACHE_DIR"]).parent


@pytest.mark.parametrize("end", ["pass", "time.sleep(60)"], ids=["ends", "is stopped"])
def test_what_a_process_started_ends_with_it(run_script, tmp_path: Path, end: str):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    worker = f"import time; file = open({str(pipe)!r}, 'w'); print(flush=True); time.sleep(60)"
    run_script(
        f"""
import subprocess
worker = subprocess.Popen([sys.executable, "-c", {worker!r}], stdout=subprocess.PIPE)
worker.stdout.readline()
open(sys.argv[1], "w").write("{{}}")
{end}
""",
        seconds=4.0,
    )
    try:
        assert select.select([reader], [], [], 20.0)[0], "the worker still holds the pipe"
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_a_measurement_that_raises_is_one_line(tmp_path: Path):
    def run_out():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines")

    def break_down():
        raise RuntimeError("\n  a first line\na second one")

    file = tmp_path / "row.json"
    for function, expected in (
        (run_out, "out of memory: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."),
        (break_down, "RuntimeError: a first line"),
    ):
        assert runner.write_row_of(file, function) == 1
        row = json.loads(file.read_text())
        assert row["error"] == expected
        assert function.__name__ in row["traceback"]
    assert runner.write_row_of(file, lambda: {"step_ms": 1.0}) == 0
    assert json.loads(file.read_text()) == {"step_ms": 1.0}


# ---- the peer


def test_the_peer_is_as_wide_or_as_large():
    from torchtitan.models.llama3.model.model import TransformerBlock

    from titan_motif.model import FLAVORS
    from titan_motif.model.model import Block
    from titan_motif.study.llama3 import equal_parameter_width, peer_arguments

    large = FLAVORS["12_7b"]
    plain, widened = peer_arguments(large), peer_arguments(large, is_widened=True)
    assert (plain.dim, plain.n_heads, plain.n_kv_heads, plain.n_layers) == (4096, 32, 16, 40)
    # A block of ours has 4096 x 5120 weights more in attention: 1706.7 columns of three matrices.
    assert equal_parameter_width(large, plain) == 71 * 256 == 18_176
    with torch.device("meta"):
        blocks = [TransformerBlock(0, args) for args in (plain, widened)]
        ours = sum(p.numel() for p in Block(large).parameters())
    assert [block.feed_forward.w1.out_features for block in blocks] == [16_384, 18_176]
    theirs = sum(p.numel() for p in blocks[1].parameters())
    assert abs(theirs - ours) <= 3 * 4096 * 128
    # 10 heads cannot share 4 key heads.
    small = peer_arguments(FLAVORS["debug"])
    assert (small.n_heads, small.n_kv_heads) == (10, 2)
