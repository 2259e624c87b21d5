"""Whole runs of the trainer on a tiny model: continuing, damage, ranks, records."""

import json
import logging
import math
import os
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tomli
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


@pytest.fixture
def arguments(small_corpus: Path, tmp_path: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(ROOT)
    return [
        *SMALL,
        *("--training.dataset_path", str(small_corpus)),
        *("--model.hf_assets_path", str(small_corpus / "tokenizer")),
        *("--job.dump_folder", str(tmp_path / "run")),
    ]


def run(argv: list[str], root: str, stop_after: int | None = None) -> list[str]:
    """Run a job on this rank; return its log. `stop_after` leaves at a step, as if killed."""
    import gc
    import logging

    import torch

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
        trainer.train()
    finally:
        if trainer is not None:
            trainer.close()
        logging.getLogger().removeHandler(handler)
        gc.enable()
    return records


def run_main(argv: list[str], root: str, folder: str, crash: bool = False):
    """Run the entry as torchrun does; return its exit code, stderr, and what torchrun would tell.

    `crash` raises a ValueError that is not ours where the model is built.
    """
    import contextlib
    import gc

    import torch

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


def test_stopping_and_resuming_changes_no_bit(rank_pool, arguments, tmp_path: Path):
    rank_pool.run(run, 2, arguments, str(ROOT))
    whole = losses(tmp_path / "run")
    assert sorted(whole) == list(range(1, 21))
    assert whole[20] < whole[1]

    halves = elsewhere(arguments, tmp_path / "halves")
    (first, _) = rank_pool.run(run, 2, halves, str(ROOT), 10)
    assert any("starting from the first step" in line for line in first)
    (second, _) = rank_pool.run(run, 2, halves, str(ROOT))
    assert any("continuing from step 10" in line for line in second)
    assert losses(tmp_path / "halves") == whole

    # the newest step is damaged: it falls back to step 15, says so, and ends at the same losses
    shard = tmp_path / "halves" / "checkpoint" / "step-20" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1000])
    (third, _) = rank_pool.run(run, 2, halves, str(ROOT))
    assert any(line.startswith("checkpoint: step-20 has ") for line in third)
    assert any("continuing from step 15" in line for line in third)
    assert losses(tmp_path / "halves") == whole

    # only a partial step is left: it stops
    for step in (5, 10, 15):
        for file in (tmp_path / "halves" / "checkpoint" / f"step-{step}").iterdir():
            file.unlink()
    (tmp_path / "halves" / "checkpoint" / "step-20" / ".metadata").unlink()
    with pytest.raises(AssertionError, match="no step can be continued from: step-20 has no"):
        rank_pool.run(run, 2, halves, str(ROOT))


def test_an_asynchronous_run_resumes_on_another_number_of_ranks(
    rank_pool, arguments, tmp_path: Path
):
    arguments = [*arguments, "--checkpoint.async_mode", "async", "--training.steps", "8"]
    rank_pool.run(run, 1, elsewhere(arguments, tmp_path / "one"), str(ROOT))
    one = losses(tmp_path / "one")
    moved = elsewhere(arguments, tmp_path / "moved")
    rank_pool.run(run, 3, moved, str(ROOT), 5)
    rank_pool.run(run, 2, moved, str(ROOT))
    assert losses(tmp_path / "moved") == pytest.approx(one, rel=1e-5)
    summaries = [summary_of(tmp_path / n) for n in ("one", "moved")]
    assert summaries[0]["tokens_seen"] == summaries[1]["tokens_seen"] == 8 * 6 * 32
    assert summaries[1]["validation_loss"] == pytest.approx(
        summaries[0]["validation_loss"], rel=1e-5
    )


def test_the_learning_rate_follows_the_tokens_through_another_batch(
    rank_pool, arguments, tmp_path: Path
):
    """Also through another number of ranks, and to the peak that is asked for then."""
    arguments += ["--lr_scheduler.warmup_steps", "200", "--lr_scheduler.warmup_tokens", "1000"]
    arguments += ["--lr_scheduler.decay_ratio", "none", "--lr_scheduler.decay_tokens", "2000"]
    arguments += ["--lr_scheduler.decay_type=inverse_sqrt", "--lr_scheduler.min_lr_factor=0.1"]
    arguments += ["--summary.enable=false", "--validation.enable=false", "--optimizer.lr=0.01"]
    rank_pool.run(run, 2, arguments, str(ROOT), 10)
    arguments += ["--training.global_batch_size", "3", "--training.steps", "40"]
    (log, *_) = rank_pool.run(run, 3, [*arguments, "--optimizer.lr=0.02"], str(ROOT), 13)
    expected = "warm-up over 1,000 tokens, inverse_sqrt decay from 1,840 to 3,840, to 0.1 of it"
    assert f"learning rate: {expected}" in log
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = [entry["lr"] for entry in map(json.loads, lines)]
    before = [0.01 * min(192 * step / 1000, 1) for step in range(1, 11)]
    seen = [1920, 1920 + 96, 1920 + 2 * 96]
    after = [0.02 * 0.1 / math.sqrt(0.01 + 0.99 * (tokens - 1840) / 2000) for tokens in seen]
    assert found == pytest.approx([*before, *after], rel=1e-12)


def assert_refused(answers, code: int, *parts: str) -> None:
    """Rank 0 prints one line, each rank hands it to torchrun, and none tells its stack."""
    for rank, (returned, stderr, message) in enumerate(answers):
        assert returned == code
        assert stderr == (f"error: {message['message']}\n" if rank == 0 else "")
        assert "\n" not in message["message"]
        assert all(part in message["message"] for part in parts)
        assert "py_callstack" not in message["extraInfo"]


def test_a_mistake_is_told_in_one_line_and_a_crash_with_its_stack(
    rank_pool, arguments, tmp_path: Path
):
    wanted = [*arguments, "--checkpoint.load_step", "4"]
    answers = rank_pool.run(run_main, 2, wanted, str(ROOT), str(tmp_path))
    assert_refused(answers, 1, "step-4 does not exist; complete steps: none")

    for split in ("train", "validation"):
        (tmp_path / "short" / split).mkdir(parents=True)
        np.save(tmp_path / "short" / split / "tokens.npy", np.zeros(32, dtype=np.uint16))
    short = ["--training.dataset", "prepared", "--training.dataset_path", str(tmp_path / "short")]
    answers = rank_pool.run(run_main, 2, [*arguments, *short], str(ROOT), str(tmp_path))
    assert_refused(answers, 2, str(tmp_path / "short"), "32 tokens")

    for code, _, message in rank_pool.run(
        run_main, 2, arguments, str(ROOT), str(tmp_path), crash=True
    ):
        assert code is None
        assert message["extraInfo"]["py_callstack"].startswith("Traceback")


def test_another_seed_stops_a_run_at_once(rank_pool, arguments, tmp_path: Path):
    arguments = [*arguments, "--training.steps", "2", "--checkpoint.interval", "1"]
    rank_pool.run(run, 2, arguments, str(ROOT))
    answers = rank_pool.run(
        run_main, 2, [*arguments, "--debug.seed", "1"], str(ROOT), str(tmp_path)
    )
    step = tmp_path / "run" / "checkpoint" / "step-2"
    assert_refused(answers, 1, f"{step}: the data loader's seed is 1", "Set debug.seed")


def test_a_run_leaves_its_records(rank_pool, arguments, tmp_path: Path):
    arguments = [*arguments, "--training.steps", "2", "--optimizer.lr", "0.02"]
    (log, quiet) = rank_pool.run(run, 2, arguments, str(ROOT))
    folder = tmp_path / "run"
    resolved = tomli.loads((folder / "config.resolved.toml").read_text())
    assert resolved["optimizer"]["lr"] == 0.02
    assert resolved["training"]["mixed_precision_param"] == "float32"
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert environment["versions"]["torchtitan"] == "0.2.2"

    summary = summary_of(folder)
    assert summary["step"] == 2
    assert summary["train_loss"] == losses(folder)[2]
    assert summary["tokens_seen"] == 2 * 6 * 32
    assert summary["bigram_train_tokens"] > 100_000
    assert 3 < summary["bigram_validation_loss"] < summary["validation_loss"] < 7
    assert len(summary["samples"]) == 3
    assert all(Path(path).exists() for path in summary["files"].values())
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tb").rglob("events.out.tfevents.*"))

    (line,) = [line for line in log if "step: 2/2" in line]
    for part in ("loss:", "lr:", "grad_norm:", "memory:", "tokens/s:", "left: 0:00"):
        assert part in line
    assert not any("  mfu: " in line for line in log)
    assert not any("bigram" in line for line in quiet)


def test_a_folder_used_again_tells_of_the_new_run_alone(rank_pool, arguments, tmp_path: Path):
    arguments = [*arguments, "--checkpoint.enable=false", "--validation.enable=false"]
    rank_pool.run(run, 2, [*arguments, "--training.steps", "6"], str(ROOT))
    rank_pool.run(run, 2, [*arguments, "--training.steps", "2", "--debug.seed", "1"], str(ROOT))
    new, summary = losses(tmp_path / "run"), summary_of(tmp_path / "run")
    assert sorted(new) == [1, 2]
    assert summary["train_loss"] == new[2]


def test_a_finished_run_says_that_nothing_is_left(rank_pool, arguments, tmp_path: Path):
    arguments = [*arguments, "--training.steps", "4", "--checkpoint.interval", "2"]
    rank_pool.run(run, 2, arguments, str(ROOT))
    first = summary_of(tmp_path / "run")
    assert first["tokens_per_second"] > 0
    for steps in (4, 3):
        (log, _) = rank_pool.run(run, 2, [*arguments, "--training.steps", str(steps)], str(ROOT))
        said = f"nothing left to train: 4 steps are done, and training.steps is {steps}"
        assert said in log
        again = summary_of(tmp_path / "run")
        for key in ("step", "train_loss", "validation_loss", "tokens_per_second"):
            assert again[key] == first[key], key


def test_tensor_parallel_ranks_train_the_same_run(rank_pool, arguments, tmp_path: Path):
    heads = ["--model.args.n_heads", "10", "--model.args.n_kv_heads", "4"]
    arguments = [*arguments, *heads, "--training.global_batch_size", "4"]
    rank_pool.run(run, 2, elsewhere(arguments, tmp_path / "fsdp"), str(ROOT))
    arguments = [*arguments, "--parallelism.tensor_parallel_degree", "2"]
    (log, *_) = rank_pool.run(run, 4, elsewhere(arguments, tmp_path / "both"), str(ROOT))
    assert any("FSDP over 2 ranks x tensor parallel over 2" in line for line in log)
    fsdp, both = losses(tmp_path / "fsdp"), losses(tmp_path / "both")
    assert sorted(both) == list(range(1, 21))
    assert both == pytest.approx(fsdp, rel=1e-4)
    summaries = [summary_of(tmp_path / n) for n in ("fsdp", "both")]
    for key in ("tokens_seen", "validation_loss", "bigram_validation_loss"):
        assert summaries[1][key] == pytest.approx(summaries[0][key], rel=1e-4)
    assert len(summaries[1]["samples"]) == 3


def stepped_gradients(argv: list[str], root: str) -> dict:
    """The gradients that the last step of a run changed the weights by."""
    import gc

    import torch

    import titan_motif.train
    from titan_motif.config_loading import load_config

    os.chdir(root)
    torch.use_deterministic_algorithms(False)
    trainer = titan_motif.train.MotifTrainer(load_config(argv, torch.distributed.get_world_size()))
    try:
        trainer.train()
    finally:
        trainer.close()
        gc.enable()
    return {n: p.grad.full_tensor() for n, p in trainer.model_parts[0].named_parameters()}


def test_gradients_are_clipped_to_max_norm_and_reported_before(
    rank_pool, arguments, tmp_path: Path
):
    arguments = [*arguments, "--training.steps", "1", "--summary.enable=false"]
    arguments += ["--checkpoint.enable=false", "--validation.enable=false"]
    gradients, reported = {}, {}
    for max_norm in (1e6, 0.01):
        argv = [*elsewhere(arguments, tmp_path / str(max_norm)), "--training.max_norm"]
        argv.append(str(max_norm))
        gradients[max_norm] = rank_pool.run(stepped_gradients, 2, argv, str(ROOT))[0]
        (entry,) = (tmp_path / str(max_norm) / "metrics.jsonl").read_text().splitlines()
        reported[max_norm] = json.loads(entry)["grad_norm"]
    whole = torch.cat([g.flatten() for g in gradients[1e6].values()])
    clipped = torch.cat([g.flatten() for g in gradients[0.01].values()])
    assert reported[0.01] == reported[1e6] == pytest.approx(whole.norm().item(), rel=1e-5)
    assert whole.norm() > 0.1
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-4)
    torch.testing.assert_close(clipped, whole * 0.01 / whole.norm(), rtol=1e-4, atol=1e-9)


def timeouts_of_a_step(argv: list[str], root: str) -> set[float]:
    """The seconds that a run allows its collectives once the first step has ended."""
    with mock.patch("torch.distributed.distributed_c10d._set_pg_timeout") as set_timeout:
        stepped_gradients(argv, root)
    return {call.args[0].total_seconds() for call in set_timeout.call_args_list}


def test_communication_settings_reach_torch(rank_pool, arguments, tmp_path: Path, monkeypatch):
    import titan_motif.train
    from titan_motif.config import JobConfig

    names = ("TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DUMP_ON_TIMEOUT")
    for name in (*names, "TORCH_NCCL_ASYNC_ERROR_HANDLING"):
        monkeypatch.setenv(name, "not set")  # and set back at the end
    config = JobConfig()
    config.job.dump_folder = str(tmp_path)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    with mock.patch("torch.distributed.init_process_group") as init:
        titan_motif.train.MotifTrainer.init_distributed(SimpleNamespace(job_config=config))
    assert init.call_args.kwargs["timeout"].total_seconds() == 1800
    assert [os.environ[name] for name in names] == ["20000", f"{tmp_path}/comm_traces/rank_", "1"]
    assert (tmp_path / "comm_traces").is_dir()

    arguments = [*arguments, "--summary.enable=false", "--validation.enable=false"]
    for steps in ("1", "2"):  # a first start, and one that goes on
        shortened = rank_pool.run(
            timeouts_of_a_step, 2, [*arguments, "--training.steps", steps], str(ROOT)
        )
        assert shortened == [{600}, {600}]


@pytest.mark.parametrize(("fsdp", "tp"), [(True, False), (False, True), (False, False)])
def test_what_torchtitan_says_of_autocast_is_not_shown(fsdp: bool, tp: bool, caplog):
    import titan_motif.train

    # isort: split
    from torchtitan.distributed.utils import maybe_enable_amp

    caplog.set_level(logging.INFO)
    dims = SimpleNamespace(fsdp_enabled=fsdp, tp_enabled=tp, pp_enabled=False)
    maybe_enable_amp(dims, "bfloat16", "cpu")
    assert caplog.records
    assert not any(map(titan_motif.train._DropNoise().filter, caplog.records))


def run_under_torchtitan(root: str, argv: list[str]) -> None:
    """torchtitan's own Trainer and configuration, with our plug-in named in it."""

    import titan_motif.device  # noqa: F401

    # isort: split
    import torchtitan.train
    from torchtitan.config import ConfigManager

    os.chdir(root)
    config = ConfigManager().parse_args(
        [
            *argv,
            "--job.custom_config_module=titan_motif.config",
            "--experimental.custom_import=titan_motif.plugin",
        ]
    )
    trainer = torchtitan.train.Trainer(config)
    trainer.train()
    trainer.close()


def test_the_plugin_works_under_torchtitans_own_trainer(rank_pool, arguments, tmp_path: Path):
    arguments = [*arguments, "--training.steps", "3"]
    rank_pool.run(run, 2, elsewhere(arguments, tmp_path / "ours"), str(ROOT))
    arguments = elsewhere(arguments, tmp_path / "theirs")
    rank_pool.run(run_under_torchtitan, 2, str(ROOT), arguments)
    assert losses(tmp_path / "theirs") == losses(tmp_path / "ours")


def test_a_run_that_has_blown_up_says_so_and_stops(rank_pool, arguments):
    """A learning rate that ends in infinities: no finite gradient after the first steps."""
    blown = ["--optimizer.name", "ParallelMuon", "--optimizer.lr", "1e30"]
    blown += ["--optimizer.muon.max_skipped_steps", "2", "--checkpoint.enable=false"]
    message = (
        r"TooManySkippedSteps: gradients were not finite in 3 steps in a row; "
        r"optimizer.muon.max_skipped_steps allows 2"
    )
    with pytest.raises(AssertionError, match=message) as failed:
        rank_pool.run(run, 2, [*arguments, *blown], str(ROOT))
    assert str(failed.value).count("TooManySkippedSteps: gradients") == 2  # on both ranks


def test_a_checkpoint_of_another_optimizer_says_how_to_go_on(rank_pool, arguments):
    short = [*arguments, "--training.steps", "2", "--summary.enable=false"]
    rank_pool.run(run, 1, [*short, "--optimizer.name", "AdamW"], str(ROOT))
    more = [*short, "--training.steps", "3"]
    advice = r"Another optimizer, or another routing, wrote it: checkpoint.exclude_from_loading = "
    with pytest.raises(AssertionError, match=advice):
        rank_pool.run(run, 1, more, str(ROOT))
    (log,) = rank_pool.run(
        run, 1, [*more, "--checkpoint.exclude_from_loading", "optimizer"], str(ROOT)
    )
    assert any(line.startswith("continuing from step 2 ") for line in log)


def test_documents_and_clips_are_those_of_the_job_across_a_resume(
    rank_pool, arguments, tmp_path: Path
):
    """Clips come at their interval wherever a run was stopped, and the metrics tell of them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    clip = ["--optimizer.qk_clip_threshold", "0.05", "--optimizer.qk_clip_interval", "3"]
    masked = ["--training.mask_documents", "--training.restart_positions"]
    arguments = [*arguments, *clip, "--training.steps", "10", "--metrics.noise_ratio_bound", "1e-4"]
    (log, _) = rank_pool.run(run, 2, [*arguments, *masked], str(ROOT))
    (warning,) = [line for line in log if "noise heads suppress" in line]
    assert "in layer 0, " in warning
    assert "(metrics.noise_ratio_bound is 0.0001)" in warning

    def figures(folder: Path) -> list[tuple[float, ...]]:
        entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        keys = ("step", "loss", "attention/max_logit", "attention/clipped_heads")
        return [tuple(entry[key] for key in keys) for entry in entries if "loss" in entry]

    whole = figures(tmp_path / "run")
    assert [step for step, _, _, clipped in whole if clipped] == [3, 6, 9]
    halves = elsewhere([*arguments, *masked], tmp_path / "halves")
    rank_pool.run(run, 2, halves, str(ROOT), 5)
    rank_pool.run(run, 2, halves, str(ROOT))
    assert figures(tmp_path / "halves") == whole

    (events,) = (tmp_path / "run" / "tb").rglob("events*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    for name in ("max_logit", "noise_over_signal", "lambda"):
        for layer in (0, 1):
            assert len(accumulator.Scalars(f"attention_{name}/layer_{layer}")) == 10
    clipped = [event.value for event in accumulator.Scalars("attention/clipped_heads")]
    assert clipped == [clipped for *_, clipped in whole]

    rank_pool.run(run, 2, elsewhere(arguments, tmp_path / "unmasked"), str(ROOT))
    losses, masked_losses = (
        [loss for _, loss, *_ in found] for found in (figures(tmp_path / "unmasked"), whole)
    )
    assert losses != masked_losses  # where a sequence holds the end of a document


CURRICULUM = """
[curriculum]
[[curriculum.sources]]
name = "english"
group = "text"
path = "english"
[[curriculum.sources]]
name = "code"
group = "code"
path = "code"
[[curriculum.phases]]
name = "short"
until_tokens = 960
seq_len = 16
global_batch_tokens = 96
weights_start = { text = 0.9, code = 0.1 }
weights_end = { text = 0.1, code = 0.9 }
[[curriculum.phases]]
name = "long"
until_tokens = 2880
seq_len = 32
global_batch_tokens = 160
global_batch_tokens_end = 320
weights_start = { code = 1.0 }
"""


def test_a_curriculum_changes_the_run_and_outlives_a_stop_on_other_ranks(
    rank_pool, arguments, tmp_path: Path
):
    """Lengths and batches that 2 and 3 ranks do not share evenly; stopped in either phase."""
    file = tmp_path / "curriculum.toml"
    plain = (ROOT / "tests/plain.toml").read_text()
    for line in ("seq_len = 128\n", "local_batch_size = -1\n", "global_batch_size = 8\n"):
        plain = plain.replace(line, "", 1)
    file.write_text(plain + CURRICULUM)
    sizes = {"--training.seq_len", "--training.local_batch_size", "--training.global_batch_size"}
    arguments = [
        word
        for name, value in zip(arguments[::2], arguments[1::2], strict=True)
        for word in (name, str(file) if name == "--job.config_file" else value)
        if name not in sizes
    ]
    arguments += ["--training.steps=-1", "--optimizer.name", "AdamW", "--optimizer.no_qk_clip"]

    def figures(folder: Path) -> list[tuple[float, ...]]:
        entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(entry["step"], entry["loss"], entry["lr"]) for entry in entries if "loss" in entry]

    (log, _) = rank_pool.run(run, 2, arguments, str(ROOT))
    whole = figures(tmp_path / "run")
    assert [step for step, _, _ in whole] == list(range(1, 20))
    assert any("phase 'long' from step 11: 5 x 32 tokens a step" in line for line in log)
    assert any("1 of 6 rows of such a step are filling" in line for line in log)
    (line,) = [line for line in log if line.startswith("validation at step 19")]
    assert "(text " in line
    assert ", code " in line
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tokens_seen"] == pytest.approx(2880, abs=160)
    assert summary["validation_losses"].keys() == {"text", "code"}

    halves = elsewhere(arguments, tmp_path / "halves")
    rank_pool.run(run, 3, halves, str(ROOT), 6)
    rank_pool.run(run, 1, halves, str(ROOT), 13)
    rank_pool.run(run, 4, halves, str(ROOT))
    for found, expected in zip(figures(tmp_path / "halves"), whole, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "run" / "tb").rglob("events*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()

    def values(tag: str) -> list[float]:
        return [event.value for event in accumulator.Scalars(tag)]

    assert values("data/seq_len") == [16] * 10 + [32] * 9
    assert values("data/tokens_seen")[-1] == summary["tokens_seen"]
    assert values("mixture/code")[10:] == [1.0] * 9
    assert values("mixture_planned/text")[0] == pytest.approx(0.86)
    assert values("epoch/english")[-1] > 0
    assert values("data/padding")[0] == 0
    assert values("data/padding")[10] == pytest.approx(1 / 6)
