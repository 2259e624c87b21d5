"""`titan-motif export` and `import`: transformers computes what the trainer does, and bits stay."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_models import overrides, random_model, write_model

import titan_motif.device  # noqa: F401

# isort: split
from safetensors.torch import load_file, save_file

from titan_motif import cli
from titan_motif.components.dcp_files import DcpFolder
from titan_motif.components.seal import content_problem
from titan_motif.model import Motif2ModelArgs
from titan_motif.model.hf_config import read_hf_config

NETWORKS = {
    "grouped": Motif2ModelArgs(
        dim=20, n_layers=3, n_heads=10, n_kv_heads=4, head_dim=8, hidden_dim=24, vocab_size=300
    ),
    "differential, tied": Motif2ModelArgs(
        dim=16,
        n_layers=2,
        n_heads=8,
        n_kv_heads=4,
        head_dim=4,
        hidden_dim=24,
        grouped_ratio=1,
        vocab_size=300,
        tie_embeddings=True,
        lam_init=(0.3, 0.45),
    ),
    "plain": Motif2ModelArgs(
        dim=16,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=4,
        hidden_dim=24,
        grouped_ratio=0,
        vocab_size=300,
    ),
}


@pytest.fixture(params=NETWORKS)
def model(request):
    return random_model(dataclasses.replace(NETWORKS[request.param], kernels="torch")).float()


def export(source: Path, to: Path, *more: str) -> int:
    return cli.main(["export", "--from", str(source), "--to", str(to), *more])


def take(source: Path, to: Path, *more: str) -> int:
    return cli.main(["import", "--from", str(source), "--to", str(to), *more])


def exported(model, tmp_path: Path, small_corpus: Path):
    """Return the model as transformers loads it from an exported directory."""
    transformers = pytest.importorskip("transformers")
    tokenizer = ["--tokenizer", str(small_corpus / "tokenizer")]
    write_model(tmp_path / "model", model)
    assert export(tmp_path / "model", tmp_path / "hf", *tokenizer) == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", trust_remote_code=True, dtype=torch.float32
    )
    return loaded.eval()


def apart(then: torch.Tensor, now: torch.Tensor) -> float:
    return float((then - now).abs().max() / then.abs().max())


@torch.no_grad()
def test_export_is_read_by_transformers_with_the_trainers_logits(
    model, tmp_path: Path, small_corpus: Path
):
    loaded = exported(model, tmp_path, small_corpus)
    tokens = torch.randint(300, (2, 13))
    expected = model(tokens)
    assert apart(expected, loaded(tokens, use_cache=False).logits) < 1e-5
    cache, seen = None, []
    for part in tokens.split([5, 1, 1, 6], dim=1):  # with a cache, in pieces
        found = loaded(part, past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        seen.append(found.logits)
    assert apart(expected, torch.cat(seen, 1)) < 1e-5
    last = loaded(tokens, logits_to_keep=1).logits
    assert last.shape[1] == 1
    assert apart(expected[:, -1:], last) < 1e-5
    labels = loaded(tokens, labels=tokens).loss
    wanted = torch.nn.functional.cross_entropy(
        expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    assert float(labels) == pytest.approx(float(wanted), rel=1e-5)
    # Padded on the left: each row is what it is alone.
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[1, :4] = 0
    padded = loaded(tokens, attention_mask=mask).logits
    assert apart(expected[0], padded[0]) < 1e-5
    assert apart(model(tokens[1:, 4:])[0], padded[1, 4:]) < 1e-5
    assert padded.isfinite().all()


@torch.no_grad()
def test_export_generates_the_trainers_greedy_text(model, tmp_path: Path, small_corpus: Path):
    loaded = exported(model, tmp_path, small_corpus)
    tokens = torch.randint(1, 300, (2, 7))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    found = loaded.generate(
        tokens, attention_mask=mask, max_new_tokens=9, do_sample=False, eos_token_id=None
    )
    for row, begin in ((0, 0), (1, 3)):
        mine = tokens[row : row + 1, begin:]
        for _ in range(9):
            mine = torch.cat((mine, model(mine)[:, -1:].argmax(-1)), 1)
        assert found[row, begin:].tolist() == mine[0].tolist()


def test_export_has_all_that_a_directory_needs(model, tmp_path: Path, small_corpus: Path):
    transformers = pytest.importorskip("transformers")
    exported(model, tmp_path, small_corpus)
    folder = tmp_path / "hf"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_motif.py",
        "seal.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert content_problem(folder) is None
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    text = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|user|>\nHi<|end|>\n"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 0
    assert read_hf_config(folder).layer_lam_init == model.model_args.layer_lam_init


def test_import_and_export_keep_every_bit(model, tmp_path: Path):
    model = model.bfloat16() if model.model_args.grouped_ratio == 4 else model
    write_model(tmp_path / "a", model, max_bytes=20_000)
    assert take(tmp_path / "a", tmp_path / "step") == 0
    step = DcpFolder(tmp_path / "step")
    for name, value in model.state_dict().items():
        assert torch.equal(step.read(name).view(torch.uint8), value.view(torch.uint8)), name
    assert export(tmp_path / "step", tmp_path / "b", "--shard-gigabytes", "0.00002") == 0
    first, second = (
        {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value.view(torch.uint8), second[name].view(torch.uint8)), name
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == first.keys()


def test_export_in_another_dtype_leaves_the_scalars(tmp_path: Path):
    model = random_model(NETWORKS["grouped"]).float()
    write_model(tmp_path / "a", model)
    assert export(tmp_path / "a", tmp_path / "b", "--dtype", "bfloat16") == 0
    found = load_file(tmp_path / "b" / "model.safetensors")
    assert found["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert found["model.layers.0.self_attn.lambda_q1"].dtype == torch.float32
    assert found["model.layers.0.mlp.act_fn.weight"].dtype == torch.float32


FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def change(folder: Path, **tensors) -> None:
    found = load_file(folder / FILE)
    for name, value in tensors.items():
        name = name.replace("__", ".")
        if value is None:
            del found[name]
        else:
            found[name] = value
    save_file(found, folder / FILE)


def write_json(folder: Path, name: str, **changes) -> None:
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def write_index(folder: Path, file: str) -> None:
    weights = dict.fromkeys(load_file(folder / FILE), file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weights}))


def hold_twice(folder: Path) -> None:
    """Lay a part of a tensor into a second file, and name the first for it."""
    tensors = {"more": torch.ones(2), "model.norm.weight": torch.ones(1)}
    save_file(tensors, folder / "model-1.safetensors")
    weights = {"more": "model-1.safetensors"} | dict.fromkeys(load_file(folder / FILE), FILE)
    (folder / INDEX).write_text(json.dumps({"weight_map": weights}))


def write_dimensions(folder: Path, num: int) -> None:
    """Write a file of one number in so many dimensions."""
    tensor = {"dtype": "F32", "shape": [1] * num, "data_offsets": [0, 4]}
    header = json.dumps({"a": tensor}).encode()
    (folder / FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def truncate(folder: Path, size: int) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:size])


def pickle_it(folder: Path, name: str) -> None:
    (folder / FILE).unlink()
    (folder / name).write_bytes(pickle.dumps({"model.norm.weight": [1.0]}))


NORM = "model__norm__weight"
BROKEN = {
    "no folder": (lambda f: shutil.rmtree(f), r"no such folder"),
    "nothing in it": (lambda f: (f / FILE).unlink(), r"no safetensors; nothing else is imported"),
    "a pickle beside": (
        lambda f: pickle_it(f, "pytorch_model.bin"),
        "no safetensors; nothing else is imported",
    ),
    "a pickle in its place": (
        lambda f: pickle_it(f, FILE),
        "model.safetensors: cannot be read as safetensors",
    ),
    "truncated": (lambda f: truncate(f, 4000), "model.safetensors: cannot be read as safetensors"),
    "truncated header": (lambda f: truncate(f, 40), "model.safetensors: cannot be read as safeten"),
    "empty": (lambda f: truncate(f, 0), "model.safetensors: cannot be read as safetensors"),
    "integers": (
        lambda f: change(f, **{NORM: torch.ones(20, dtype=torch.int64)}),
        "model.norm.weight is I64; one of F64, F32, BF16, F16 is needed",
    ),
    "an extra tensor": (
        lambda f: change(f, more=torch.ones(2)),
        "more is not a parameter of Motif-2",
    ),
    "a layer too many": (
        lambda f: change(f, model__layers__9__input_layernorm__weight=torch.ones(20)),
        r"the tensor layers.9.attention_norm.weight is none of the network's",
    ),
    "a missing tensor": (lambda f: change(f, **{NORM: None}), "lacks the tensor norm.weight"),
    "another shape": (
        lambda f: change(f, **{NORM: torch.ones(21)}),
        "norm.weight is 21; the network needs 20",
    ),
    "not a number": (
        lambda f: change(f, **{NORM: torch.full((20,), float("nan"))}),
        "norm.weight has values that are not finite",
    ),
    "infinite": (
        lambda f: change(f, **{NORM: torch.full((20,), float("inf"))}),
        "norm.weight has values that are not finite",
    ),
    "an index that leaves the folder": (
        lambda f: write_index(f, "../model.safetensors"),
        "is said to be in '../model.safetensors'; a .safetensors file beside the index is needed",
    ),
    "an absolute index": (
        lambda f: write_index(f, "/etc/passwd"),
        "is said to be in '/etc/passwd'; a .safetensors file beside the index is needed",
    ),
    "an index to a file that is not there": (
        lambda f: write_index(f, "model-2.safetensors"),
        r"model-2.safetensors: no such file; model.safetensors.index.json names it for",
    ),
    "an index that is no JSON": (
        lambda f: (f / INDEX).write_text("{"),
        "model.safetensors.index.json: cannot be read as an index",
    ),
    "an index of nothing": (
        lambda f: (f / INDEX).write_text('{"weight_map": {}}'),
        "model.safetensors.index.json: names no tensors",
    ),
    "an index that lacks a tensor": (
        lambda f: (f / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": FILE}})),
        f"{INDEX}: does not name lm_head.weight, which {FILE} has",
    ),
    "an index with a tensor too many": (
        lambda f: (f / INDEX).write_text(
            json.dumps({"weight_map": dict.fromkeys([*load_file(f / FILE), "more"], FILE)})
        ),
        f"{INDEX}: more is not in {FILE}",
    ),
    "a tensor in two files": (
        hold_twice,
        f"model.norm.weight is in model-1.safetensors and in {FILE} too",
    ),
    "too many dimensions": (
        lambda f: write_dimensions(f, 100_000),
        "cannot be read as safetensors ('a' has 100,000 dimensions; at most 64 are read)",
    ),
    "as many dimensions as torch has": (
        lambda f: write_dimensions(f, 64),
        "a is not a parameter of Motif-2",
    ),
    "no network": (
        lambda f: (f / "config.json").unlink(),
        "what network it holds is not known",
    ),
    "another family": (
        lambda f: write_json(f, "config.json", model_type="llama"),
        "config.json: model_type is 'llama'; 'Motif' is needed",
    ),
    "no width": (
        lambda f: write_json(f, "config.json", hidden_size=None),
        "config.json: lacks hidden_size",
    ),
    "a network that cannot be": (
        lambda f: write_json(f, "config.json", num_attention_heads=7),
        "config.json: n_heads is 7; with grouped_ratio 4 it must be a multiple of 5",
    ),
    "a scaled rotation": (
        lambda f: write_json(f, "config.json", rope_scaling={"factor": 2}),
        "config.json: rope_scaling is {'factor': 2}; None alone is served",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_import_answers_broken_models_with_one_line(case: str, tmp_path: Path, capsys):
    damage, expected = BROKEN[case]
    folder = write_model(tmp_path / "model", random_model(NETWORKS["grouped"]).float())
    damage(folder)
    capsys.readouterr()
    assert take(folder, tmp_path / "step") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not (tmp_path / "step").exists()
    assert not (tmp_path / "step.writing").exists()


def test_import_needs_room_and_an_empty_place(tmp_path: Path, capsys, monkeypatch):
    folder = write_model(tmp_path / "model", random_model(NETWORKS["grouped"]).float())
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "mine").write_text("precious")
    assert take(folder, tmp_path / "step") == 1
    assert "holds something, which is not replaced; name another" in capsys.readouterr().err
    assert os.listdir(tmp_path / "step") == ["mine"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    assert take(folder, tmp_path / "other") == 1
    assert "0.00 GB are needed, and 0.00 GB are left" in capsys.readouterr().err


def test_import_of_a_sealed_model_that_changed_names_the_tensor(tmp_path: Path, capsys):
    write_model(tmp_path / "model", random_model(NETWORKS["grouped"]).float())
    assert export(tmp_path / "model", tmp_path / "hf") == 0
    content = bytearray((tmp_path / "hf" / FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / "hf" / FILE).write_bytes(content)
    capsys.readouterr()
    assert take(tmp_path / "hf", tmp_path / "step") == 1
    told = "has changed in model.safetensors since it was saved, at lm_head.weight"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("command", ["import", "export", "grow"])
def test_import_on_a_disk_that_fills_up_leaves_nothing(command: str, tmp_path: Path):
    """The limit of a file's size stands for the disk's."""
    args = NETWORKS["grouped"]
    write_model(tmp_path / "model", random_model(args).float())
    arguments = [command, "--from", str(tmp_path / "model"), "--to", str(tmp_path / "out")]
    if command == "grow":
        job = tmp_path / "job.toml"
        data = "[training]\nbuiltin_vocab_size = 300\n"
        job.write_text(f'[model]\nname = "motif2"\nflavor = "debug"\n{data}' + overrides(args))
        arguments += ["--config", str(job)]
    line = f"ulimit -f 60; exec {sys.executable} -m titan_motif.cli {' '.join(arguments)}"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    (told,) = [text for text in finished.stderr.splitlines() if text.startswith("error: ")]
    assert told.endswith(": cannot be written (File too large)")
    assert str(tmp_path / "out") in told
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.writing").exists()


def test_a_file_that_is_added_to_a_sealed_model_is_told(tmp_path: Path, capsys):
    write_model(tmp_path / "model", random_model(NETWORKS["grouped"]).float())
    assert export(tmp_path / "model", tmp_path / "hf") == 0
    zeros = {name: torch.zeros_like(v) for name, v in load_file(tmp_path / "hf" / FILE).items()}
    save_file(zeros, tmp_path / "hf" / "other.safetensors")
    capsys.readouterr()
    assert export(tmp_path / "hf", tmp_path / "again") == 1
    assert "has other.safetensors, which its seal does not list" in capsys.readouterr().err
    (tmp_path / "hf" / "seal.json").unlink()
    (tmp_path / "hf" / FILE).write_bytes((tmp_path / "hf" / FILE).read_bytes()[:-100])
    assert cli.main(["seal", str(tmp_path / "hf")]) == 1
    assert "cannot be read as safetensors" in capsys.readouterr().err


def test_export_keeps_scalars_wide_in_a_narrow_model(tmp_path: Path, small_corpus: Path):
    transformers = pytest.importorskip("transformers")
    exported(random_model(NETWORKS["grouped"]).float(), tmp_path, small_corpus)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", trust_remote_code=True, dtype=torch.bfloat16
    )
    layer = loaded.model.layers[0]
    assert layer.mlp.gate_proj.weight.dtype == torch.bfloat16
    assert layer.mlp.act_fn.weight.dtype == torch.float32
    assert layer.self_attn.lambda_q1.dtype == torch.float32
    kept = loaded(torch.arange(8)[None], logits_to_keep=torch.tensor([3])).logits
    assert kept.shape[1] == 1
