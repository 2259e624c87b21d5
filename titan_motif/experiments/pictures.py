"""Pictures of an experiment's arms: curves with bands, accuracies with bars, layers over time."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from titan_motif.experiments.lines import Line, validation_line
from titan_motif.experiments.measures import Measure, RowsByArm, summarize
from titan_motif.experiments.records import Curve
from titan_motif.study.runner import Row


def draw_validation(rows: RowsByArm, path: Path, groups: Sequence[str]) -> bool:
    """Draw the validation loss of each group over tokens: an arm's mean, and a band over seeds.

    Returns: whether there was anything to draw
    """
    panels = {
        group: ("million tokens", partial(validation_line, name=f"validation_loss/{group}"))
        for group in groups
    }
    return draw_curves(rows, path, panels)


def draw_curves(
    rows: RowsByArm, path: Path, panels: Mapping[str, tuple[str, Callable[[Row], Line]]]
) -> bool:
    """Draw losses side by side: an arm's mean, and a band over seeds.

    Args:
        panels: by title: the label of x, and what gives a row's x and losses
    Returns: whether there was anything to draw
    """
    finished = {arm: found for arm, found in rows.items() if found}
    if not finished:
        return False
    figure, drawn = _panels(1, len(panels))
    for axes, (title, (label, line_of)) in zip(drawn[0], panels.items(), strict=True):
        for arm, found in finished.items():
            curves = [line_of(row) for row in found]
            xs, _ = min(curves, key=lambda curve: len(curve[0]))
            losses = list(zip(*(values for _, values in curves), strict=False))
            color = _color(arm, rows)
            means = [sum(values) / len(values) for values in losses]
            axes.plot(xs, means, color=color, label=_named(arm, found), linewidth=1.2)
            if len(found) > 1:
                lowest, highest = [min(v) for v in losses], [max(v) for v in losses]
                axes.fill_between(xs, lowest, highest, color=color, alpha=0.25, linewidth=0)
        axes.set(title=title, xlabel=label)
    drawn[0][0].set_ylabel("validation loss, nats a token")
    drawn[0][-1].legend(fontsize=8)
    return _save(figure, path)


def draw_sizes(
    rows: RowsByArm,
    path: Path,
    panels: Mapping[str, tuple[str, Callable[[Row], Line], Callable[[Row], Line]]],
    label: str,
) -> bool:
    """Draw what was measured over a size, on axes of powers, and what was predicted beside it.

    Args:
        panels: by title: the label of y, and what gives a row's measured and predicted line
        label:  of the size
    Returns: whether there was anything to draw
    """
    finished = {arm: found for arm, found in rows.items() if found}
    if not finished:
        return False
    figure, drawn = _panels(1, len(panels))
    for axes, (title, (unit, measured, predicted)) in zip(drawn[0], panels.items(), strict=True):
        for arm, found in finished.items():
            lines = [measured(row) for row in found]
            sizes, _ = lines[0]
            values = list(zip(*(ys for _, ys in lines), strict=True))
            means = [sum(v) / len(v) for v in values]
            below = [max(mean - min(v), 0.0) for mean, v in zip(means, values, strict=True)]
            above = [max(max(v) - mean, 0.0) for mean, v in zip(means, values, strict=True)]
            style = {"color": _color(arm, rows), "marker": "o", "markersize": 4, "linewidth": 1}
            axes.errorbar(sizes, means, [below, above], label=arm, capsize=2, **style)
            axes.plot(*predicted(found[0]), color=_color(arm, rows), ls="--", linewidth=1)
        axes.set(title=title, xlabel=label, ylabel=unit, xscale="log", yscale="log")
        ticks = sorted({x for found in finished.values() for x in measured(found[0])[0]})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    drawn[0][-1].legend(fontsize=8)
    return _save(figure, path)


def draw_accuracy(
    rows: RowsByArm, path: Path, tasks: Mapping[str, tuple[str, Mapping[int, Measure]]]
) -> bool:
    """Draw the share of right answers by difficulty and arm.

    Bars are the standard deviation over seeds; of one seed, the questions' standard error.

    Args:
        tasks: by name: what a difficulty counts, and the measure of each
    Returns: whether there was anything to draw
    """
    finished = {arm: found for arm, found in rows.items() if found}
    if not finished:
        return False
    figure, panels = _panels(1, len(tasks))
    for axes, (task, (unit, measures)) in zip(panels[0], tasks.items(), strict=True):
        for index, (arm, found) in enumerate(finished.items()):
            shift = 0.08 * (index - (len(finished) - 1) / 2)
            summaries = [(measure, summarize(measure, found)) for measure in measures.values()]
            bars = [
                measure.standard_error(s.mean) if s.deviation is None else s.deviation
                for measure, s in summaries
            ]
            axes.errorbar(
                [difficulty + shift for difficulty in measures],
                [100 * s.mean for _, s in summaries],
                [100 * bar for bar in bars],
                color=_color(arm, rows),
                label=_named(arm, found),
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1,
            )
        axes.set(title=task, xlabel=unit, ylim=(-3, 103))
        axes.set_xticks(list(measures))
    panels[0][0].set_ylabel("right answers, %")
    panels[0][-1].legend(fontsize=8)
    return _save(figure, path)


def draw_layers(rows: RowsByArm, path: Path, curves: Mapping[str, str]) -> bool:
    """Draw values of each layer over tokens, an arm a column, of its first seed.

    Args:
        curves: name of the curve in `by_layer` -> the axis' label; arms without them are left out
    Returns: whether there was anything to draw
    """
    found = {arm: cells[0] for arm, cells in rows.items() if cells}
    found = {arm: row for arm, row in found.items() if all(c in row["by_layer"] for c in curves)}
    if not found:
        return False
    figure, panels = _panels(len(curves), len(found))
    for line, (name, label) in zip(panels, curves.items(), strict=True):
        for axes, row in zip(line, found.values(), strict=True):
            _draw_curve(axes, row["by_layer"][name], row["tokens_seen"] / row["step"] / 1e6)
        line[0].set_ylabel(label)
    for arm, first, last in zip(found, panels[0], panels[-1], strict=True):
        first.set_title(arm)
        last.set_xlabel("million tokens")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, title="layer")
    return _save(figure, path)


def _draw_curve(axes: Any, curve: Curve, million_tokens_of_step: float) -> None:
    from matplotlib import colormaps

    layers = [name for name in curve if name != "step"]
    tokens = [step * million_tokens_of_step for step in curve["step"]]
    for layer in layers:
        number = int(layer.removeprefix("layer_"))
        color = colormaps["viridis"](number / max(len(layers) - 1, 1))
        axes.plot(tokens, curve[layer], color=color, label=str(number), linewidth=1)


def _panels(num_rows: int, num_columns: int) -> tuple[Any, Any]:
    """Return a figure of equal panels, and the panels by row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (1.2 + 3.6 * num_columns, 0.6 + 2.9 * num_rows)
    figure, panels = pyplot.subplots(
        num_rows, num_columns, figsize=size, layout="constrained", squeeze=False, sharex="col"
    )
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return figure, panels


def _color(arm: str, rows: RowsByArm) -> str:
    """Return an arm's colour, the same whichever others are finished."""
    return f"C{list(rows).index(arm)}"


def _named(arm: str, rows: Sequence[Row]) -> str:
    return f"{arm} (one seed)" if len(rows) == 1 else f"{arm} ({len(rows)} seeds)"


def _save(figure: Any, path: Path) -> bool:
    from matplotlib import pyplot

    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
