"""The first 50 losses of a small run against stored ones: what changes the numbers has to say so.

After a change that is meant to move the curve: `./run_tests.sh -k golden --update-golden`, look at
the difference, commit it with the reason.
"""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/debug_losses.json"
TOLERANCE = 1e-4
"""Relative. One rank instead of two moves the curve by 3e-7 (rounding, grown by 50 updates),
PolyNorm without its bias by 1.7e-3, nine tenths of lambda by 5e-4."""


def write_tokens(folder: Path) -> None:
    """Tokens that do not depend on Python's version, as the built-in corpus does."""
    tokens = [1, 2]
    state = 12345
    while len(tokens) < 100_000:
        state = (1103515245 * state + 12345) % 2**31
        # mostly a function of the token before, or of the one before that; sometimes anything
        draw = state // 65536
        rule = (5 * tokens[-1] + 7, 3 * tokens[-2] + 1, draw // 4)[(0, 0, 1, 2)[draw % 4]]
        tokens.append(rule % 64)
    for split in ("train", "validation"):
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "tokens.npy", np.array(tokens, dtype=np.uint16))


def run(argv: list[str], root: str) -> None:
    import gc
    import os

    from titan_motif.config_loading import load_config
    from titan_motif.train import MotifTrainer

    os.chdir(root)
    trainer = MotifTrainer(load_config(argv, 2))
    try:
        trainer.train()
    finally:
        trainer.close()
        gc.enable()


def test_golden_curve(rank_pool, small_corpus: Path, tmp_path: Path, request):
    write_tokens(tmp_path / "data")
    arguments = [
        "--job.config_file", "tests/plain.toml",
        "--job.dump_folder", str(tmp_path / "run"),
        "--training.dataset", "prepared",
        "--training.dataset_path", str(tmp_path / "data"),
        "--model.hf_assets_path", str(small_corpus / "tokenizer"),
        "--metrics.log_freq", "1",
    ]  # fmt: skip
    arguments += ["--validation.no_enable", "--checkpoint.no_enable", "--summary.no_enable"]
    # the schedule stays that of the whole run
    arguments += ["--lr_scheduler.total_steps", "450", "--training.steps", "50"]
    # in 16 bits the number of ranks and the kind of CPU would move the curve
    arguments += ["--optimizer.muon.mode", "exact"]
    rank_pool.run(run, 2, arguments, str(ROOT), seconds=200)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines)]
    assert len(losses) == 50
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps({"losses": losses}, indent=1) + "\n")
        pytest.skip(f"wrote {GOLDEN}")
    golden = json.loads(GOLDEN.read_text())["losses"]
    assert golden[-1] < golden[0] - 1.5  # the curve is one of learning
    assert losses == pytest.approx(golden, rel=TOLERANCE)
