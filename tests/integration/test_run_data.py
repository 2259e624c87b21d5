"""What a run reads: documents, a curriculum, and both across stops."""

import json
from pathlib import Path

import pytest
from whole_runs import ROOT, elsewhere, run


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
