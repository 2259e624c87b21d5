"""Whole runs of the trainer on a tiny model: continuing, ranks, records."""

import json
import logging
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import tomli
import torch
from whole_runs import ROOT, elsewhere, losses, run, summary_of

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif.components.dcp_files import DcpFolder
from titan_motif.components.safetensors_files import SafetensorsFolder
from titan_motif.components.saved_steps import saved_steps
from titan_motif.components.seal import content_problem
from titan_motif.model.state_dict_adapter import released_name
from titan_motif.run_log import _DropNoise


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
    with pytest.raises(AssertionError, match=r"step-20 lacks its file \.metadata"):
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

    (start,) = map(json.loads, (folder / "starts.jsonl").read_text().splitlines())
    assert (start["step"], start["lost_steps"], start["world_size"]) == (0, 0, 2)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert {"time", "memory/max_reserved(GiB)", "data/seq_len", "attention_lambda/layer_0"} <= {
        *first
    }
    assert f"  as a page        titan-motif report {folder}" in log

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
    from torchtitan.distributed.utils import maybe_enable_amp

    caplog.set_level(logging.INFO)
    dims = SimpleNamespace(fsdp_enabled=fsdp, tp_enabled=tp, pp_enabled=False)
    maybe_enable_amp(dims, "bfloat16", "cpu")
    assert caplog.records
    assert not any(map(_DropNoise().filter, caplog.records))


def run_under_torchtitan(root: str, argv: list[str]) -> None:
    """torchtitan's own Trainer and configuration, with our plug-in named in it."""

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
    # Their loss is that of whole logits: the same but for the order of sums.
    assert losses(tmp_path / "theirs") == pytest.approx(losses(tmp_path / "ours"), rel=1e-5)


def test_a_moving_average_is_fed_back_and_outlives_a_stop(rank_pool, arguments, tmp_path: Path):
    """192 tokens a step: the 1920th are passed with step 10, when 5 and 10 are saved."""
    plain = elsewhere(arguments, tmp_path / "plain")
    rank_pool.run(run, 2, [*plain, "--summary.enable=false"], str(ROOT))
    average = ["--moving_average.enable", "--moving_average.interval_tokens", "1920"]
    average += ["--moving_average.num_checkpoints", "2", "--summary.enable=false"]
    (log, _) = rank_pool.run(run, 2, [*arguments, *average], str(ROOT))
    told = [line for line in log if line.startswith("moving average")]
    assert told == ["moving average: the weights are the mean of steps [10, 5] from here on"]
    then, now = losses(tmp_path / "plain"), losses(tmp_path / "run")
    assert [step for step in then if then[step] != now[step]] == list(range(11, 21))
    halves = [*elsewhere(arguments, tmp_path / "halves"), *average]
    rank_pool.run(run, 2, halves, str(ROOT), 10)
    (log, _) = rank_pool.run(run, 2, halves, str(ROOT))
    assert told[0] in log
    assert losses(tmp_path / "halves") == now


def test_one_run_goes_on_under_other_layouts(rank_pool, arguments, tmp_path: Path):
    """10 steps on FSDP 2, then on TP 2, on one rank and on FSDP 3."""
    more = ["--training.steps", "20", "--summary.enable=false", "--checkpoint.async_mode=disabled"]
    more += ["--model.args.n_heads", "10", "--model.args.n_kv_heads", "4"]
    rank_pool.run(run, 2, [*arguments, *more], str(ROOT))
    whole = losses(tmp_path / "run")
    for step in (15, 20):
        shutil.rmtree(tmp_path / "run" / "checkpoint" / f"step-{step}")
    for name, ranks, layout in (
        ("tensor parallel", 2, ["--parallelism.tensor_parallel_degree", "2"]),
        ("one", 1, []),
        ("three", 3, []),
    ):
        shutil.copytree(tmp_path / "run" / "checkpoint", tmp_path / name / "checkpoint")
        argv = [*elsewhere(arguments, tmp_path / name), *more, *layout]
        log = rank_pool.run(run, ranks, argv, str(ROOT))[0]
        assert any(line.startswith("continuing from step 10 ") for line in log)
        found = losses(tmp_path / name)
        assert sorted(found) == list(range(11, 21)), name
        for step, loss in found.items():
            assert loss == pytest.approx(whole[step], abs=1e-4), (name, step)


def test_the_last_step_can_be_what_transformers_reads(rank_pool, arguments, tmp_path: Path):
    """last_save_in_hf through the adapter: sealed, and begun from with initial_load_in_hf."""
    last = ["--checkpoint.last_save_in_hf", "--checkpoint.last_save_model_only"]
    more = ["--training.steps", "3", "--summary.enable=false"]
    rank_pool.run(run, 2, [*arguments, *more, *last], str(ROOT))
    folder = tmp_path / "run" / "checkpoint" / "step-3"
    assert content_problem(folder) is None
    (step,) = saved_steps(folder.parent)
    assert step.is_model_only
    begin = ["--checkpoint.initial_load_path", str(folder), "--checkpoint.initial_load_in_hf"]
    begin += ["--checkpoint.initial_load_model_only", "--training.steps", "1"]
    again = [*elsewhere(arguments, tmp_path / "again"), *more, *begin]
    (log,) = rank_pool.run(run, 1, again, str(ROOT))
    assert f"beginning from the weights of {folder}" in log
    then = SafetensorsFolder(folder)
    other = ["--job.dump_folder", str(tmp_path / "refused")]
    with pytest.raises(AssertionError, match=r"embed_tokens\.weight has the shape"):
        rank_pool.run(run, 1, [*again, "--model.args.dim", "40", *other], str(ROOT))
    now = DcpFolder(tmp_path / "again" / "checkpoint" / "step-1")
    assert {released_name(name) for name in now.tensors} == then.tensors.keys()
    assert torch.allclose(  # one small step away
        then.read("model.norm.weight"), now.read("norm.weight"), atol=1e-2
    )

    # A step tells its network: what no tensor holds is compared before it is begun from.
    theta = ["--checkpoint.initial_load_path", str(tmp_path / "again" / "checkpoint" / "step-1")]
    theta += ["--checkpoint.initial_load_model_only", "--model.args.rope_theta", "5e5", *other]
    with pytest.raises(
        AssertionError, match=r"its config\.json has another rope_theta than the job"
    ):
        rank_pool.run(run, 1, [*arguments, *more, *theta], str(ROOT))
