"""The page itself: one HTML file that asks for nothing outside of it.

Everything of the run goes through Jinja's escaping. The page's own policy forbids all requests, and
all scripts but the one whose hash it names, so that nothing in a run's texts could act.
"""

import base64
import hashlib
import time
from pathlib import Path
from typing import Any

import jinja2

from titan_motif.report.charts import Charts, evaluation_charts
from titan_motif.report.facts import (
    changed_settings,
    environment_rows,
    evaluation_table,
    hardware,
    statement,
    tiles,
    told_bytes,
    told_moment,
    told_setting,
    warnings,
)
from titan_motif.report.record import RunRecord
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

_HERE = Path(__file__).parent
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


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
