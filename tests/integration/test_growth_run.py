"""A trained model grown to twice its width and 1.25 times its depth, and trained further."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from whole_runs import ROOT, elsewhere, losses, run

from titan_motif import cli
from titan_motif.components.dcp_files import DcpFolder

MORE = "[training]\nbuiltin_vocab_size = 512\n"
LAYERS = ["--model.args.n_layers", "4", "--summary.enable=false", "--training.steps", "20"]
WIDE = {
    "dim": 40,
    "n_layers": 5,
    "n_heads": 10,
    "n_kv_heads": 4,
    "head_dim": 4,
    "hidden_dim": 48,
    "vocab_size": 512,
}


@pytest.fixture
def trained(rank_pool, arguments, tmp_path: Path) -> Path:
    """Two ranks, 20 steps."""
    rank_pool.run(run, 2, [*arguments, *LAYERS], str(ROOT))
    return tmp_path / "run" / "checkpoint" / "step-20"


def begin_from(folder: Path) -> list[str]:
    return ["--checkpoint.initial_load_path", str(folder), "--checkpoint.initial_load_model_only"]


def test_grow_trains_on_from_the_loss_of_the_small_model(
    rank_pool, arguments, trained: Path, tmp_path: Path, capsys
):
    table, job = tmp_path / "table.json", tmp_path / "job.toml"
    settings = "\n".join(f"{name} = {value}" for name, value in WIDE.items())
    job.write_text(f'[model]\nname = "motif2"\nflavor = "debug"\n{MORE}[model.args]\n{settings}\n')
    grown = tmp_path / "grown"
    command = ["grow", "--from", str(trained), "--to", str(grown), "--config", str(job)]
    assert cli.main([*command, "--snr-db", "30", "--dtype", "float64", "--json", str(table)]) == 0
    content = json.loads(table.read_text())
    assert content["differences"]["random float64"]["logits"] < 1e-10
    assert content["differences"]["random float32"]["logits"] < 2e-5

    small = [*elsewhere(arguments, tmp_path / "small"), *LAYERS, *begin_from(trained)]
    small += ["--training.steps", "1"]
    rank_pool.run(run, 2, small, str(ROOT))
    wide = [*elsewhere(arguments, tmp_path / "wide"), *LAYERS, *begin_from(grown)]
    wide += ["--checkpoint.initial_load_in_hf"]
    wide += [text for name, value in WIDE.items() for text in (f"--model.args.{name}", str(value))]
    (lines,) = rank_pool.run(refused, 1, wide, str(ROOT))
    assert "its config.json has another lam_init than the job" in lines
    wide += ["--model.args.lam_init", json.dumps(content["lam_init"])]
    rank_pool.run(run, 2, wide, str(ROOT))
    then, now = losses(tmp_path / "small"), losses(tmp_path / "wide")
    assert now[1] == pytest.approx(then[1], abs=1e-5)
    assert sum(now[step] for step in (18, 19, 20)) < sum(now[step] for step in (1, 2, 3))

    # With the optimizer's states grown too.
    assert (
        cli.main(
            [
                *command[:3],
                "--to",
                str(tmp_path / "with"),
                *command[5:],
                "--no-verify",
                "--optimizer",
                "grown",
            ]
        )
        == 0
    )
    states = begin_from(tmp_path / "with")[:2]
    states += ["--checkpoint.initial_load_model_only=false", "--training.steps", "3"]
    states += ["--checkpoint.exclude_from_loading", "lr_scheduler,dataloader,train_state"]
    taken = [*elsewhere(wide, tmp_path / "taken"), "--checkpoint.initial_load_in_hf=false", *states]
    rank_pool.run(run, 2, taken, str(ROOT))
    assert losses(tmp_path / "taken")[1] == pytest.approx(then[1], abs=1e-5)

    # Two copies of a hidden unit compute the same at first, and something else after 20 steps.
    before = load_file(grown / "model.safetensors")["model.layers.0.mlp.gate_proj.weight"]
    step = DcpFolder(tmp_path / "wide" / "checkpoint" / "step-20")
    after = step.read("layers.0.feed_forward.gate_proj.weight")
    apart = [
        float((summed[:24] - summed[24:]).abs().max() / summed.abs().max())
        for summed in (before[:, :20] + before[:, 20:], after[:, :20] + after[:, 20:])
    ]
    assert apart[0] < 1e-9
    assert apart[1] > 1e-3


def refused(argv: list[str], root: str) -> str:
    try:
        run(argv, root)
    except RuntimeError as error:
        return str(error)
    return ""
