"""The page itself: one HTML file that asks for nothing outside of it.

Everything of the run goes through Jinja's escaping. The page's own policy forbids all requests, and
all scripts but the one whose hash it names, so that nothing in a run's texts could act.
"""

import base64
import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from titan_motif.report.charts import Charts, evaluation_charts
from titan_motif.report.record import (
    RunRecord,
    changed_settings,
    is_number,
    state_of,
    told_seconds,
    training_seconds,
)
from titan_motif.report.series import (
    HEIGHT,
    WIDTH,
    Chart,
    Point,
    Series,
    dots_of,
    means,
    path_of,
    step_axis,
    thin,
    told,
    value_axis,
)
from titan_motif.run_folder import SUMMARY

_HERE = Path(__file__).parent
_EVALUATED_STEPS = 4
"""Evaluated steps that the table shows, the newest ones."""
_SIZES = ("samples", "shots")
_LAST_SECTIONS = (
    "Evaluation",
    "Samples",
    "Saved steps",
    "Starts",
    "Configuration",
    "Environment",
)
"""Headings of the template's own, after the charts."""
_DOTS_BELOW = 40
"""A curve of fewer points has a dot at each."""


def render(run: RunRecord, now: float | None = None) -> str:
    """Return the page of a run as HTML.

    Args:
        now: seconds since the epoch at which the page is made; without it, the time
    """
    now = time.time() if now is None else now
    script = (_HERE / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    charts = Charts(run)
    sections = charts.sections()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"setting": told_setting, "anchor": _anchor}
    return environment.get_template("page.html").render(
        name=str(run.setting("job.description") or run.folder.resolve().name),
        folder=run.folder.resolve().name,
        statement=statement(run, now),
        tiles=tiles(run),
        titles=["Warnings", *(section.title for section in sections), *_LAST_SECTIONS],
        warnings=warnings(run),
        sections=[
            {
                "title": section.title,
                "missing": section.missing,
                "charts": [view(chart) for chart in section.charts],
            }
            for section in sections
        ],
        evaluations=evaluation_table(run),
        evaluation_charts=[view(chart) for chart in evaluation_charts(run)],
        samples=[text for text in run.summary.get("samples") or [] if isinstance(text, str)],
        checkpoints=[
            {
                "step": f"{saved.step:,}",
                "state": saved.problem or ("the model alone" if saved.is_model_only else "whole"),
                "size": told_bytes(num_bytes),
            }
            for saved, num_bytes in run.checkpoints
        ],
        changed=changed_settings(run.config),
        config_text=run.config_text,
        environment=environment_rows(run),
        starts=[
            {
                "time": told_moment(start.get("time")),
                "step": f"{start['step']:,}",
                "lost_steps": told(start.get("lost_steps")),
                "hardware": hardware(start),
                "commit": str(start.get("git_commit") or "-")[:12],
            }
            for start in run.starts
        ],
        made=told_moment(now),
        width=WIDTH,
        height=HEIGHT,
        style=(_HERE / "page.css").read_text(),
        script=script,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
    )


def statement(run: RunRecord, now: float) -> str:
    """Return in a sentence how far the run is, and on what it ran."""
    state = state_of(run, now)
    where = hardware(run.environment)
    return f"{state[:1].upper()}{state[1:]}{'' if where == '-' else f', on {where}'}."


def hardware(environment: dict[str, Any]) -> str:
    """Return how many processes ran on what."""
    ranks, device = environment.get("world_size"), environment.get("device_name")
    return f"{ranks} x {device}" if ranks and device else "-"


def tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the figures at the page's top: (what, figure, remark)."""
    summary = run.summary if run.is_summary_current else {}
    nats = "nats/token"
    found: list[tuple[str, str, str]] = []

    def add(what: str, value: Any, text: str, remark: str) -> None:
        found.append((what, text, remark) if is_number(value) else (what, "-", "not recorded"))

    if is_number(summary.get("train_loss")):
        loss = summary["train_loss"]
        add("Training loss", loss, f"{loss:.4f}", f"{nats}, mean of the last tenth")
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
    add("Tokens", tokens, f"{tokens or 0:,.0f}", f"in {run.last_step:,} steps")
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
        found.append(f"{skipped:,} steps were skipped: gradients were not finite")
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


def view(chart: Chart) -> dict[str, Any]:
    """Return a chart as the template draws it; shares of the axes are in per cent."""
    steps, values = step_axis(chart), value_axis(chart)

    def told_value(value: float) -> str:
        return f"{100 * value:.4g}%" if chart.is_share else told(value)

    thinned = [thin(series.points) for series in chart.series]
    rows = [
        {
            "name": series.name,
            "look": f"{series.color}{' dashed' if series.is_dashed else ''}",
            "path": path_of(means(series.points), steps, values),
            "band": path_of(points, steps, values) if len(points) < len(series.points) else "",
            "dots": dots_of(points, steps, values) if has_dots(series) else "",
            "last": told_value(series.points[-1][1]),
            "figures": [
                f"{told_value(value)} at {step:,}" for step, value in extremes(series.points)
            ],
        }
        for series, points in zip(chart.series, thinned, strict=True)
    ]
    return {
        "title": chart.title,
        "unit": ", ".join(filter(None, (chart.unit, "logarithmic" if values.is_log else ""))),
        "note": chart.note,
        "rows": rows,
        "spoken": f"{chart.title} over steps. "
        + " ".join(
            f"{row['name']}: first {row['figures'][0]}, last {row['figures'][3]}." for row in rows
        ),
        "step_ticks": [
            (100 * steps.share(step), told(step)) for step in steps.ticks(4) if step == int(step)
        ],
        "value_ticks": [(100 * values.share(v), told_value(v)) for v in values.ticks()],
        "marks": [round(WIDTH * steps.share(s)) for s in chart.marks if steps.low < s < steps.high],
        "data": {
            "low": steps.low,
            "high": steps.high,
            "share": chart.is_share,
            "steps": [[step for step, _ in points] for points in thinned],
            "values": [[float(f"{v:.6g}") for _, v in points] for points in thinned],
        },
    }


def has_dots(series: Series) -> bool:
    """Return whether the points of a curve are few enough to be seen one by one."""
    return len(series.points) < _DOTS_BELOW and not series.is_dashed


def extremes(points: list[Point]) -> list[Point]:
    """Return the first, the least, the largest and the last point."""
    by_value = [min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])]
    return [points[0], *by_value, points[-1]]


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


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
