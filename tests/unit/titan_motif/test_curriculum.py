"""The curriculum of a job: settings that are refused, what is implied, preview and trace."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import check_config, cli
from titan_motif.components.preparation.manifest import tokenizer_sha256, write_manifest
from titan_motif.config_loading import ConfigError, load_config
from titan_motif.curriculum import build_loader, shares, sources_of, sources_without_manifest
from titan_motif.data.trace import load_job

DEBUG = "train_configs/debug.toml"
ROOT = Path(__file__).resolve().parents[3]
FILE = """
[training]
dataset = "prepared"
dataset_path = "{folder}"
steps = -1
[model]
hf_assets_path = "{folder}"
[model.args]
vocab_size = 100
[validation]
enable = true
seq_len = 8
[curriculum]
{settings}
[[curriculum.sources]]
name = "a"
group = "web"
path = "a"
{source}
[[curriculum.sources]]
name = "b"
group = "code"
path = "b"
[[curriculum.phases]]
name = "first"
until_tokens = 800
seq_len = 8
global_batch_tokens = 80
weights_start = {{ web = 0.75, code = 0.25 }}
{phase}
[[curriculum.phases]]
name = "second"
seq_len = 16
{second}
"""
GOOD = {
    "settings": "",
    "source": "",
    "phase": "",
    "second": (
        "until_tokens = 1600\nglobal_batch_tokens = 160\nweights_start = { web = 0.5, code = 0.5 }"
    ),
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def write(folder: Path, **changes: str) -> Path:
    """Write data of two sources and a job that reads them; return the TOML file."""
    for name in ("a", "b"):
        for split, size in (("train", 300), ("validation", 60)):
            (folder / name / split).mkdir(parents=True, exist_ok=True)
            np.save(folder / name / split / "tokens.npy", np.arange(size, dtype=np.uint16) % 90)
    (folder / "tokenizer.json").touch()
    file = folder / "job.toml"
    file.write_text(FILE.format(folder=folder, **(GOOD | changes)))
    return file


def second(text: str) -> dict[str, str]:
    return {"second": text + "\nweights_start = { web = 0.5, code = 0.5 }"}


BAD = {
    "unknown setting": ({"source": "pth = 1"}, "sources.1.pth is not a setting", "path?"),
    "wrong type": ({"source": "weight = 'much'"}, "sources.1.weight is 'much'", "a number"),
    "unknown format": ({"source": 'format = "csv"'}, "sources.1.format is 'csv'", "'prepared'"),
    "negative weight": ({"source": "weight = -2.0"}, "curriculum.sources.1.weight is -2.0", "more"),
    "weights that do not sum": (
        {"phase": "weights_end = { web = 0.5, code = 0.4 }"},
        "curriculum.phases.1.weights_end sums to 0.9",
        "1 is needed",
    ),
    "a weight that is no number": (
        {"phase": 'weights_end = { web = "half" }'},
        "phases.1.weights_end is {'web': 'half'}",
        "a table of finite numbers",
    ),
    "negative share": (
        {"phase": "weights_end = { web = 1.5, code = -0.5 }"},
        "curriculum.phases.1.weights_end gives 'code' -0.5",
        "at least 0",
    ),
    "unknown group": (
        {"phase": "weights_end = { web = 0.5, math = 0.5 }"},
        "phases.1.weights_end names the group 'math'",
        "web, code",
    ),
    "overlapping phases": (
        second("until_tokens = 700\nglobal_batch_tokens = 160"),
        "curriculum.phases.2.until_tokens is 700",
        "phase 'second' begins at 800 tokens",
    ),
    "no end": (second("global_batch_tokens = 160"), "phases.2.until_tokens and until_share", "one"),
    "a share of nothing": (
        second("until_share = 0.5\nglobal_batch_tokens = 160"),
        "phases.2.until_share is given",
        "curriculum.total_tokens",
    ),
    "a batch that cannot be divided": (
        second("until_tokens = 1600\nglobal_batch_tokens = 150"),
        "curriculum.phases.2.global_batch_tokens is 150",
        "a multiple of seq_len 16 is needed, such as 144 or 160",
    ),
    "no batch": (second("until_tokens = 1600"), "global_batch_tokens is -1", "such as 16"),
    "over a cap": (
        {"settings": "caps = { code = 0.4 }"},
        "curriculum.phases.2.weights_start gives 'code' 0.5",
        "the cap of 0.4 allows",
    ),
    "a cap on nothing": ({"settings": "caps = { x = 0.4 }"}, "curriculum.caps names 'x'", "web"),
    "no micro-batch": (
        {"settings": "local_batch_tokens = 0"},
        "curriculum.local_batch_tokens is 0",
        "-1 (one micro-batch a step) or at least 1",
    ),
    "a total that nothing is a share of": (
        {"settings": "total_tokens = 1600"},
        "curriculum.total_tokens is 1600",
        "it needs a phase with until_share",
    ),
    "an endless weight": (
        {"source": "weight = inf"},
        "curriculum.sources.1.weight is inf",
        "finite",
    ),
    "no multiple": (
        {"settings": "batch_multiple = 0"},
        "curriculum.batch_multiple is 0",
        "at least 1",
    ),
    "too long a sequence": (
        {"second": GOOD["second"].replace("160", "4096"), "settings": ""},
        "training.seq_len is 4096",
        "at most 2048",
    ),
}


def test_a_mistake_in_a_phase_is_told_in_its_own_line(tmp_path: Path):
    text = (ROOT / "train_configs/debug.toml").read_text()
    file = tmp_path / "job.toml"
    file.write_text(text.replace("until_tokens = 419_840", "until_tokens = 300_000"))
    number = text[: text.index("until_tokens = 419_840")].count("\n") + 1
    told = f"{file}:{number}: curriculum.phases.2.until_tokens is 300,000; "
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_config(["--job.config_file", str(file)], 2)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_curriculum_is_answered_with_one_line(case: str, tmp_path: Path, capsys):
    changes, found, allowed = BAD[case]
    file = write(tmp_path, **changes)
    if case == "too long a sequence":
        file.write_text(file.read_text().replace("seq_len = 16", "seq_len = 4096"))
    assert check_config.main(["--world-size", "2", "--job.config_file", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: {re.escape(str(file))}:\d+: ", line)
    assert found in line
    assert allowed in line


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--training.seq_len", "9"], "training.seq_len is 9; the phases of the curriculum decide"),
        (["--training.steps", "16"], "training.steps is 16; the phases make 15: -1 takes all"),
        (["--curriculum.phases", "x"], "--curriculum.phases is a table; it is given in a TOML"),
        (["--curriculum.enable=false"], "training.steps is -1; at least 1 is needed"),
    ],
)
def test_a_command_line_cannot_contradict_the_phases(tmp_path, capsys, arguments, found):
    file = write(tmp_path)
    command = ["--world-size", "2", "--job.config_file", str(file), *arguments]
    assert check_config.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert found in line


def test_phases_decide_length_batch_and_steps(tmp_path: Path):
    config = load_config(["--job.config_file", str(write(tmp_path))], world_size=3)
    training, plan = config.training, config.lr_scheduler.plan
    assert (training.seq_len, training.steps, training.local_batch_size) == (16, 15, 4)
    assert plan.phase_steps == (0, 10, 15)
    again = load_config(  # what a run resolved is a job that it can be started from
        ["--job.config_file", str(tmp_path / "job.toml"), "--training.seq_len", "16"], 3
    )
    assert again.training == training
    cut = load_config(["--job.config_file", str(tmp_path / "job.toml"), "--training.steps", "4"], 3)
    assert (cut.training.steps, cut.lr_scheduler.plan.num_steps) == (4, 15)
    shared = write(tmp_path, **second("until_share = 1.0\nglobal_batch_tokens = 160"))
    shared.write_text(
        shared.read_text().replace("[curriculum]\n", "[curriculum]\ntotal_tokens=2400\n")
    )
    config = load_config(["--job.config_file", str(shared)], 3)
    assert config.lr_scheduler.plan.total_tokens == 2400


@pytest.mark.parametrize(
    "missing", ["folder", "validation", "vocabulary", "vocabulary of the manifest", "offsets"]
)
def test_the_files_of_sources_are_checked(tmp_path: Path, missing: str):
    file = write(tmp_path)
    if missing == "folder":
        file.write_text(file.read_text().replace('path = "b"', 'path = "c"'))
        expected = r"curriculum.sources has 'b'; .*c/train/tokens.npy: no such file"
    elif missing == "validation":
        np.save(tmp_path / "b" / "validation" / "tokens.npy", np.zeros(8, np.uint16))
        expected = r"has 'b'; .*validation/tokens.npy: 8 tokens; at least 9 are needed"
    elif missing == "vocabulary":
        np.save(tmp_path / "a" / "train" / "tokens.npy", np.full(300, 100))
        expected = r"has 'a'; train/tokens.npy holds the ids 100 to 100, .* has 0 to 99"
    elif missing == "vocabulary of the manifest":
        (tmp_path / "tokenizer.json").write_text("{}")
        tokenizer = {"sha256": tokenizer_sha256(tmp_path), "end_of_text": "<|endoftext|>"}
        content = {"tokenizer": tokenizer, "inputs": [], "splits": {}, "largest_id": 100}
        write_manifest(tmp_path / "a", content)
        expected = r"has 'a'; train/tokens.npy holds the ids 0 to 100, .* has 0 to 99"
    else:
        np.save(tmp_path / "a" / "train" / "document_offsets.npy", np.array([0, 299]))
        expected = r"has 'a'; .*document_offsets.npy: not the documents of"
    with pytest.raises(ConfigError, match=expected):
        load_config(["--job.config_file", str(file)], 2)


def test_a_group_that_the_built_in_corpus_has_not_is_told(small_corpus: Path, tmp_path: Path):
    file = write(tmp_path)
    given = ["--job.config_file", str(file), "--training.dataset", "builtin"]
    given += ["--training.dataset_path", str(small_corpus), "--model.hf_assets_path", "auto"]
    given += ["--training.builtin_vocab_size", "512", "--model.args.vocab_size", "512"]
    told = (
        "curriculum.sources has 'a'; its path 'a' is none of the built-in corpus, which has "
        "english, code, mathematics"
    )
    with pytest.raises(ConfigError, match=told):
        load_config(given, 2)


def test_sources_without_a_manifest_are_named(tmp_path: Path):
    file = write(tmp_path)
    config = load_config(["--job.config_file", str(file)], 2)
    assert sources_without_manifest(config) == ["a", "b"]


def test_sources_of_a_group_share_by_tokens_or_by_weight(tmp_path: Path):
    file = write(tmp_path)
    file.write_text(file.read_text().replace('group = "code"', 'group = "web"'))
    file.write_text(file.read_text().replace("{ web = 0.75, code = 0.25 }", "{ web = 1.0 }"))
    file.write_text(file.read_text().replace("{ web = 0.5, code = 0.5 }", "{ web = 1.0 }"))
    config = load_config(["--job.config_file", str(file)], 1)
    np.save(tmp_path / "b" / "train" / "tokens.npy", np.zeros(100, np.uint16))
    loader = build_loader(config, 0, 1)
    assert loader.sources == [("a", "web", 0.75), ("b", "web", 0.25)]
    weighted = [
        source._replace(weight=w) for source, w in zip(sources_of(config), (1, 3), strict=True)
    ]
    files = [stream.file for stream in loader.streams]
    assert shares(weighted, files) == [("a", "web", 0.25), ("b", "web", 0.75)]


def test_without_a_curriculum_everything_is_read(small_corpus: Path, tmp_path: Path):
    builtin = ["--training.dataset_path", str(small_corpus), "--training.builtin_vocab_size", "512"]
    config = load_config(builtin, 1)
    names = ["english", "code", "mathematics"]
    assert [source.name for source in sources_of(config)] == names
    loader = build_loader(config, 0, 1)
    epochs = loader.epochs(config.training.steps)  # equally often, of the whole
    assert max(epochs.values()) == pytest.approx(min(epochs.values()), rel=0.03)
    off = load_config(["--job.config_file", DEBUG, "--curriculum.enable=false", *builtin,
                       "--training.steps", "3"], 1)  # fmt: skip
    assert off.lr_scheduler.plan.step(0).num_sequences == 8


def test_a_trace_is_the_same_for_any_ranks_and_workers(small_corpus: Path, tmp_path: Path):
    command = ["data", "trace", "--config", DEBUG, "--step", "320", "--count", "2"]
    command += ["--override", f"training.dataset_path={small_corpus}"]
    command += ["training.builtin_vocab_size=512"]
    files = [tmp_path / f"{i}.json" for i in range(4)]
    for file, (ranks, workers, tp) in zip(
        files, ((1, 0, 1), (3, 0, 1), (2, 2, 1), (2, 0, 2)), strict=True
    ):
        more = [f"parallelism.tensor_parallel_degree={tp}", "--json", str(file)]
        more += ["--ranks", str(ranks), "--workers", str(workers)]
        assert cli.main([*command, *more]) == 0
    contents = {file.read_bytes() for file in files}
    assert len(contents) == 1
    found = json.loads(contents.pop())["sequences"]
    assert [entry["sequence"] for entry in found] == list(range(319 * 8, 321 * 8))
    assert [entry["seq_len"] for entry in found] == [128] * 8 + [256] * 8
    overrides = (f"training.dataset_path={small_corpus}", "training.builtin_vocab_size=512")
    config = load_job(Path(DEBUG), overrides, 1)
    for entry in found:  # what it says of documents is where the tokens are
        folder = small_corpus / entry["source"] / "train"
        tokens, offsets = (np.load(folder / f"{n}.npy") for n in ("tokens", "document_offsets"))
        pieces = [
            tokens[offsets[p["document"]] + p["begin"] :][: p["num_tokens"]]
            for p in entry["documents"]
        ]
        (stream,) = [s for s in build_loader(config, 0, 1).streams if s.name == entry["source"]]
        assert (np.concatenate(pieces) == stream.read(entry["position"], entry["seq_len"])[0]).all()


def test_a_preview_shows_the_run_without_its_data(tmp_path: Path, capsys):
    command = ["data", "preview", "--config", "train_configs/motif2_12_7b.toml"]
    png, points = tmp_path / "p.png", tmp_path / "p.json"
    assert cli.main([*command, "--png", str(png), "--json", str(points)]) == 0
    printed = capsys.readouterr().out
    assert "119,844 steps, 5,499,974,320,128 tokens" in printed
    assert "how often each source will be read is not known" in printed
    assert png.read_bytes().startswith(b"\x89PNG")
    found = json.loads(points.read_text())["points"]
    assert found[0]["batch_tokens"] == 16_777_216
    assert found[-1]["seq_len"] == 16_384
    assert all(point["weights"].get("reasoning", 0) < 0.1 for point in found)
    assert max(point["lr"] for point in found) == pytest.approx(4e-4)


def test_the_loaders_speed_is_told(tmp_path: Path):
    file = tmp_path / "speed.json"
    command = ["bench", "loader", "--tokens", "40000", "--seq-len", "64", "--workers", "1"]
    assert cli.main([*command, "--seconds", "0.2", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["source_tokens"] == 40_000
    assert figures["tokens_per_second"] > 0
    assert figures["anonymous_mb"] > 50


def test_a_model_compiles_once_for_every_length():
    import torch
    from torch._dynamo.testing import CompileCounter

    from titan_motif.model import Motif2Model, Motif2ModelArgs
    from titan_motif.parallelize import compile_blocks

    args = Motif2ModelArgs(
        dim=16, n_layers=3, n_heads=5, n_kv_heads=2, head_dim=4, hidden_dim=8, vocab_size=32
    )
    plain, model = Motif2Model(args), Motif2Model(args)
    for made in (plain, model):
        made.init_weights()
    counter = CompileCounter()
    torch._dynamo.reset()
    compile_blocks(model, counter)
    lengths = (8, 16, 24, 8, 16, 24, 12)
    for length in lengths:
        tokens = torch.arange(2 * length).view(2, length) % 32
        assert torch.equal(model(tokens), plain(tokens))
    assert counter.frame_count == len(set(lengths))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_source(tmp_path: Path):
    figures = []
    for tokens in (2_000_000, 100_000_000):
        file = tmp_path / f"{tokens}.json"
        command = [sys.executable, "-m", "titan_motif.cli", "bench", "loader", "--seconds", "20"]
        command += ["--tokens", str(tokens), "--json", str(file)]
        subprocess.run(command, check=True, cwd=ROOT)
        figures.append(json.loads(file.read_text()))
    small, large = figures
    assert large["source_tokens"] == 50 * small["source_tokens"]
    assert large["anonymous_mb"] == pytest.approx(small["anonymous_mb"], rel=0.05)
