"""Whole runs of a tiny model, on the ranks of the pool."""

import contextlib
import gc
import json
import logging
import os
import signal
import time
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]

SMALL = [
    "--job.config_file",
    "tests/plain.toml",
    "--model.args.dim",
    "20",
    "--model.args.n_layers",
    "2",
    "--model.args.n_heads",
    "5",
    "--model.args.n_kv_heads",
    "2",
    "--model.args.head_dim",
    "4",
    "--model.args.hidden_dim",
    "24",
    "--model.args.vocab_size",
    "512",
    "--training.builtin_vocab_size",
    "512",
    "--training.seq_len",
    "32",
    "--training.local_batch_size",
    "1",
    "--training.global_batch_size",
    "6",
    "--validation.seq_len",
    "32",
    "--validation.freq",
    "1000",
    "--validation.local_batch_size",
    "16",
    "--lr_scheduler.warmup_steps",
    "5",
    "--metrics.log_freq",
    "1",
    "--checkpoint.interval",
    "5",
    "--summary.sample_tokens",
    "3",
    "--training.steps",
    "20",
    "--checkpoint.keep_latest_k",
    "0",
]


def command_line(corpus: Path, folder: Path) -> list[str]:
    """Return the arguments of a tiny run in a folder."""
    return [
        *SMALL,
        *("--training.dataset_path", str(corpus)),
        *("--model.hf_assets_path", str(corpus / "tokenizer")),
        *("--job.dump_folder", str(folder)),
    ]


def run(
    argv: list[str],
    root: str,
    stop_after: int | None = None,
    signal_at: tuple[int, int] | None = None,
    spoil: tuple | None = None,
) -> list[str]:
    """Run a job on this rank; return its log.

    `stop_after` leaves at a step, as if killed; `signal_at` lets SIGTERM come to the last rank
    alone, in a step and a micro-batch of it (from 1; 0: in the validation after it; -1: while
    it waits for data that never come); `spoil` makes a number NaN or infinite, whose fate is the
    log's last line, before it an error that ends the run.
    """
    import titan_motif.train
    from titan_motif.config_loading import load_config

    os.chdir(root)
    torch.use_deterministic_algorithms(False)
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler = Keep()
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    trainer = None
    try:
        config = load_config(argv, torch.distributed.get_world_size())
        trainer = titan_motif.train.MotifTrainer(config)
        if stop_after is not None:
            trainer.should_continue_training = lambda: trainer.step < stop_after
            config.summary.enable = False
        if signal_at is not None:
            _receive_at(trainer, *signal_at)
        if spoil is None:
            trainer.train()
        else:
            records += _train_spoiled(trainer, spoil)
    finally:
        if trainer is not None:
            trainer.close()
            trainer.control.close()
        logging.getLogger().removeHandler(handler)
        gc.enable()
    return records


def _train_spoiled(trainer, spoil: tuple) -> list[str]:
    from titan_motif.components.step_gate import StepRefused
    from titan_motif.drill.spoil import Spoil, spoil_run

    watched, told = [], []
    spoil_run(trainer, Spoil(*spoil), watched.append)
    try:
        trainer.train()
    except StepRefused as error:
        told = [f"{type(error).__name__}: {error}"]
    return [*told, str(watched[0])]


def _receive_at(trainer, step: int, micro_batch: int) -> None:
    """Let the last rank find a signal received, in the middle of a micro-batch."""
    forward_backward, validate = trainer.forward_backward_step, trainer.validator.before_batch
    is_last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1

    def receiving(**batch):
        loss = forward_backward(**batch)
        if is_last and (trainer.step, trainer.num_micro_batches) == (step, micro_batch):
            trainer.control.stop._receive(signal.SIGTERM, None)
        return loss

    def validating():
        validate()
        if is_last and (trainer.step, 0) == (step, micro_batch):
            trainer.control.stop._receive(signal.SIGTERM, None)

    def stepping(batches):
        if is_last and (trainer.step, -1) == (step, micro_batch):
            batches = trainer._count_without_filling(never())
        train_step(batches)

    def never():
        trainer.control.stop._receive(signal.SIGTERM, None)
        yield time.sleep(3600)

    trainer.forward_backward_step, trainer.validator.before_batch = receiving, validating
    train_step, trainer.train_step = trainer.train_step, stepping


def run_main(argv: list[str], root: str, folder: str, crash: bool = False):
    """Run the entry as torchrun does; return its exit code, stderr, and what torchrun would tell.

    `crash` raises a ValueError that is not ours where the model is built.
    """
    import titan_motif.train

    os.chdir(root)
    torch.use_deterministic_algorithms(False)
    rank = os.environ["RANK"]
    error_file, stderr_file = (Path(folder) / f"{name}-{rank}" for name in ("error", "stderr"))
    broken = mock.patch("torchtitan.train.dist_utils.set_determinism", side_effect=ValueError)
    with (
        mock.patch.dict(os.environ, TORCHELASTIC_ERROR_FILE=str(error_file)),
        stderr_file.open("w") as stderr,
        contextlib.redirect_stderr(stderr),
        broken if crash else contextlib.nullcontext(),
    ):
        try:
            code = titan_motif.train.main(argv)
        except ValueError:
            code = None
        finally:
            gc.enable()
    return code, stderr_file.read_text(), json.loads(error_file.read_text())["message"]


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {e["step"]: e["loss"] for e in map(json.loads, lines) if "loss" in e}


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def elsewhere(arguments: list[str], folder: Path) -> list[str]:
    return [*arguments, "--job.dump_folder", str(folder)]
