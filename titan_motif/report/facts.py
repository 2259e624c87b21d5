"""What a page tells of a run in words and figures, drawn from its record."""

import dataclasses
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from titan_motif.components.history import HISTORY_FILE
from titan_motif.config import JobConfig
from titan_motif.report.record import RunRecord, is_number
from titan_motif.run_folder import SUMMARY

_QUIET_SECONDS = 600
"""A run that has written nothing for so long, and for three of its longest pauses, has stopped."""
_EVALUATED_STEPS = 4
"""Evaluated steps that the table shows, the newest ones."""
_SIZES = ("samples", "shots")


def statement(run: RunRecord, now: float) -> str:
    """Return in a sentence how far the run is, and on what it ran."""
    state = state_of(run, now)
    where = hardware(run.environment)
    return f"{state[:1].upper()}{state[1:]}{'' if where == '-' else f', on {where}'}."


def hardware(environment: dict[str, Any]) -> str:
    """Return how many processes ran on what."""
    ranks, device = environment.get("world_size"), environment.get("device_name")
    return f"{ranks} x {device}" if ranks and device else "-"


def state_of(run: RunRecord, now: float | None = None) -> str:
    """Return how far a run is, in words: finished, ended early, under way, or stopped.

    Args:
        now: seconds since the epoch; without it, the time
    """
    total = run.setting("training.steps")
    of = f" of {total:,}" if type(total) is int and total > 0 else ""
    if run.is_summary_current:
        is_whole = not of or run.last_step >= total
        return f"{'finished' if is_whole else 'ended'} at step {run.last_step:,}{of}"
    if not run.history:
        return f"begun, no step recorded yet{of and f' ({total:,} are planned)'}"
    seconds = (time.time() if now is None else now) - last_written(run)
    times = [entry["time"] for entry in run.history if is_number(entry.get("time"))]
    pauses = [after - before for before, after in pairwise(times)]
    is_quiet = seconds > max(_QUIET_SECONDS, 3 * max(pauses, default=0))
    how = "stopped after" if is_quiet else "under way at"
    told = f"last written {told_seconds(max(seconds, 0))} before this page"
    return f"{how} step {run.last_step:,}{of}, {told}"


def last_written(run: RunRecord) -> float:
    """Return when the history was last written, in seconds since the epoch."""
    time_ = run.last("time")
    return (run.folder / HISTORY_FILE).stat().st_mtime if time_ is None else time_


def tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the figures at the page's top: (what, figure, remark)."""
    summary = run.summary if run.is_summary_current else {}
    nats = "nats/token"
    found: list[tuple[str, str, str]] = []

    def add(what: str, value: Any, text: str, remark: str) -> None:
        found.append((what, text, remark) if is_number(value) else (what, "-", "not recorded"))

    if is_number(summary.get("train_loss")):
        loss = summary["train_loss"]
        add("Training loss", loss, f"{loss:.4f}", f"{nats}, mean of the last tenth's logged steps")
    else:
        loss = next((e["loss"] for e in reversed(run.history) if "loss" in e), None)
        if loss is None or is_number(loss):
            add("Training loss", loss, f"{loss or 0:.4f}", f"{nats}, last recorded step")
        else:
            found.append(("Training loss", "not finite", "last recorded step"))
    loss = summary.get("validation_loss") or run.last("validation_loss")
    bigram, remark = summary.get("bigram_validation_loss"), nats
    if is_number(bigram) and is_number(loss):
        side = "under" if bigram >= loss else "over"
        remark = f"{nats}, {abs(bigram - loss):.4f} {side} a bigram model"
    add("Validation loss", loss, f"{loss or 0:.4f}", remark)
    if is_number(summary.get("bits_per_byte")):
        add("Bits per byte", 1.0, f"{summary['bits_per_byte']:.4f}", "validation")
    tokens = summary.get("tokens_seen") or run.last("n_tokens_seen")
    add("Tokens", tokens, told_tokens(tokens or 0), f"in {run.last_step:,} steps")
    seconds = training_seconds(run)
    told_time = told_seconds(seconds) if is_number(seconds) else ""
    add("Time", seconds, told_time, "in steps, without validation and saving")
    rate = run.tokens_per_second
    add("Throughput", rate, f"{rate or 0:,.0f}", "tokens/s, all ranks, mean")
    return found


def warnings(run: RunRecord) -> list[str]:
    """Return what somebody who reads the page should know before they trust it."""
    found = list(run.problems)
    if run.summary and not run.is_summary_current:
        found.append(
            f"{SUMMARY} is of step {run.summary.get('step')}, which the run went beyond: its "
            "losses are not shown"
        )
    skipped = max((e.get("optimizer/skipped_steps") or 0 for e in run.history), default=0)
    if skipped:
        found.append(
            f"{skipped:,} steps were skipped: numbers were not finite, or the loss a spike"
        )
    losses = [e for e in run.history if "loss" in e and not is_number(e["loss"])]
    if losses:
        first = losses[0]["step"]
        found.append(f"the training loss was not finite in {len(losses):,} lines from step {first}")
    bound = run.setting("metrics.noise_ratio_bound")
    prefix = "attention_noise_over_signal/layer_"
    if is_number(bound):
        layers = {
            key.removeprefix(prefix): None
            for entry in run.history
            for key, value in entry.items()
            if key.startswith(prefix) and is_number(value) and value > bound
        }
        if layers:
            found.append(
                f"noise maps passed {bound} times the signal maps (metrics.noise_ratio_bound) in "
                f"layer {', '.join(layers)}"
            )
    broken = [saved.step for saved, _ in run.checkpoints if saved.problem]
    if broken:
        found.append(f"not whole: saved step {', '.join(f'{step:,}' for step in broken)}")
    if run.environment.get("git_has_changes"):
        found.append("the source tree had changes that its commit does not hold")
    if len({json.dumps(start.get("versions")) for start in run.starts}) > 1:
        found.append("the starts of the run had different versions of its packages")
    return found


def training_seconds(run: RunRecord) -> float | None:
    """Return the time that the recorded steps took, validation and saving left out."""
    logged = [entry for entry in run.history if "loss" in entry]
    steps = [0, *(entry["step"] for entry in logged)]
    seconds = [entry.get("time_metrics/step(s)") for entry in logged]
    if seconds and all(map(is_number, seconds)):
        return sum(
            each * (end - begin)
            for each, (begin, end) in zip(seconds, pairwise(steps), strict=True)
        )
    tokens, rate = run.summary.get("tokens_seen"), run.summary.get("tokens_per_second")
    return tokens / rate if is_number(tokens) and is_number(rate) and rate > 0 else None


def evaluation_table(run: RunRecord) -> dict[str, Any]:
    """Return the results of the newest evaluated steps, newest first, by metrics of tasks."""
    shown = run.evaluations[: -_EVALUATED_STEPS - 1 : -1]
    names = dict.fromkeys(
        (task, metric)
        for result in shown
        for task, found in result["tasks"].items()
        for metric in found["metrics"]
    )

    def cell(result: dict[str, Any], task: str, metric: str) -> str:
        found = result["tasks"].get(task, {}).get("metrics", {}).get(metric)
        if not isinstance(found, dict) or not is_number(found.get("value")):
            return "-"
        stderr = found.get("stderr")
        return f"{found['value']:.4f}" + (f" ± {stderr:.4f}" if is_number(stderr) else "")

    def size(task: str) -> str:
        newest = next(r["tasks"][task] for r in shown if task in r["tasks"])
        return " / ".join("-" if newest.get(k) is None else str(newest[k]) for k in _SIZES)

    return {
        "steps": [result["step"] for result in shown],
        "num_left_out": len(run.evaluations) - len(shown),
        "rows": [
            {"task": t, "metric": m, "size": size(t), "cells": [cell(r, t, m) for r in shown]}
            for t, m in names
        ],
    }


def environment_rows(run: RunRecord) -> list[tuple[str, str]]:
    """Return the environment, versions last, as names and texts."""
    table = {name: v for name, v in run.environment.items() if name != "versions"}
    versions = run.environment.get("versions")
    table |= versions if isinstance(versions, dict) else {}
    return [
        (name.replace("_", " "), "-" if v is None else str(v).lower() if v is True else str(v))
        for name, v in table.items()
    ]


def changed_settings(config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (section.field, value, default) of what is not as a job without a file has it."""
    defaults = dict(_flatten(dataclasses.asdict(JobConfig())))
    return [
        (key, value, defaults.get(key))
        for key, value in _flatten(config)
        if value != defaults.get(key) and not (value in ({}, []) and not defaults.get(key))
    ]


def _flatten(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (section.field, value) of nested tables, whatever a file has in them.

    That of config_loading knows the settings: it keeps one that is a table (curriculum.caps) whole.
    """
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def told_seconds(seconds: float) -> str:
    """Return a time in its two largest units."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole, parts = round(seconds), []
    for name, size in units:
        count, whole = divmod(whole, size)
        parts.append((count, name))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {name}" for count, name in parts[first : first + 2])


def told_tokens(count: float) -> str:
    """Return a count of tokens, which fits on a telephone."""
    return f"{count / 1e9:,.2f} billion" if count >= 1e9 else f"{count:,.0f}"


def told_bytes(size: int) -> str:
    """Return a size in the unit that suits it."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:,.3g} {unit}"
    return f"{size} bytes"


def told_moment(seconds: Any) -> str:
    """Return a moment of so many seconds since the epoch, in UTC."""
    if not is_number(seconds):
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def told_setting(value: Any) -> str:
    """Return a setting's value as TOML writes short ones; of tables their number."""
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        names = ", ".join(str(entry.get("name", "")) for entry in value)
        return f"{len(value)} tables: {names}"
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
