"""Which charts a run's page has, and what is said where there is nothing to draw."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from titan_motif.report.record import RunRecord, is_number
from titan_motif.report.series import Chart, Point, Series, series_of

_NUM_COLORS = 8
_NATS = "nats per token"
_UNDRAWN = {"step", "time", "n_tokens_seen", "data/tokens_seen"}
"""Recorded figures that are no curves; the page tells the tokens at its top."""


@dataclass
class Section:
    """A part of the page: charts under a heading."""

    title: str
    charts: list[Chart] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Sentences on what is not there."""


class Charts:
    """Draws a run's figures chart by chart, and knows which of them are not drawn yet."""

    def __init__(self, run: RunRecord) -> None:
        self.run, self.history = run, run.history
        self.keys = list(dict.fromkeys(key for entry in run.history for key in entry))
        self.undrawn = [key for key in self.keys if key not in _UNDRAWN]
        self.groups = _groups(run, self.keys)
        steps = [entry["step"] for entry in run.history] or [0]
        self.span = steps[0], steps[-1]
        self.marks = sorted({s["step"] for s in run.starts if 0 < s["step"] < steps[-1]})

    def sections(self) -> list[Section]:
        """Return all charts; the figures that no chart asks for by name come last."""
        drawn = [self.losses(), self.data(), self.optimizer(), self.attention(), self.speed()]
        return [section for section in [*drawn, self.rest()] if section.charts or section.missing]

    def losses(self) -> Section:
        """Draw training and validation loss, whole and by group, and the z-loss."""
        section = Section("Losses")
        curves = [
            self._take("loss", "training", color="ink"),
            self._take("validation_loss", "validation", color="c1"),
        ]
        bigram = self.run.summary.get("bigram_validation_loss")
        steps = [step for curve in curves for step, _ in curve.points]
        if is_number(bigram) and steps:
            ends = sorted({min(steps), max(steps)})
            points = [(step, bigram) for step in ends]
            curves.append(Series("bigram model, validation", points, "quiet", is_dashed=True))
        self._add(section, "Loss", _NATS, curves, "Loss: not recorded.")
        absent = "Validation loss by group: not recorded."
        if not any(key.startswith("validation_loss") for key in self.keys):
            is_off = self.run.setting("validation.enable") is False
            absent = "Nothing was validated" + (
                ": validation.enable is false." if is_off else " yet."
            )
        self._add_groups(section, absent)
        z_loss = [self._take("loss_metrics/z_loss", "z-loss")]
        self._add(section, "z-loss, not part of the loss above", _NATS, z_loss)
        return section

    def data(self) -> Section:
        """Draw what was read: the mixture, epochs, lengths, batches and filling."""
        section = Section("Data")
        planned, read = (self._take_groups(p) for p in ("mixture_planned/", "mixture/"))
        planned = [
            Series(f"{curve.name}, planned", curve.points, curve.color, is_dashed=True)
            for curve in planned
        ]
        note = "Share of sequences since the line before; dashed as planned."
        looks: dict[str, Any] = {"bottom": 0.0, "is_share": True, "note": note}
        absent = "Mixture: not recorded."
        self._add(section, "Mixture", "share", [*read, *planned], absent, **looks)
        epochs = self._take_by_name("epoch/")
        self._add(section, "Epochs of each source", "times read", epochs, bottom=0.0)
        for key, title, unit in (
            ("data/seq_len", "Length of a sequence", "tokens"),
            ("data/batch_tokens", "Batch", "tokens a step, all ranks"),
        ):
            self._add(section, title, unit, [self._take(key, title.lower())], bottom=0.0)
        padding = [self._take("data/padding", "filling")]
        if any(value for _, value in padding[0].points):
            self._add(section, "Filling rows", "share", padding, bottom=0.0, is_share=True)
        return section

    def optimizer(self) -> Section:
        """Draw the learning rate, the gradient norm, skipped steps and Muon's figures."""
        section = Section("Optimizer")
        for key, title, unit, looks in (
            ("lr", "Learning rate", "", {"bottom": 0.0}),
            ("grad_norm", "Gradient norm, before clipping", "", {"can_be_log": True}),
        ):
            absent = f"{title}: not recorded."
            self._add(section, title, unit, [self._take(key, title)], absent, **looks)
        skipped = self._take("optimizer/skipped_steps", "steps skipped")
        if any(value for _, value in skipped.points):
            self._add(section, "Skipped steps since the start", "steps", [skipped], bottom=0.0)
        elif skipped.points:
            section.missing.append("No step was skipped.")
        for prefix in ("muon/", "optimizer/"):
            self._add(section, "Muon", prefix.rstrip("/"), self._take_by_name(prefix))
        return section

    def attention(self) -> Section:
        """Draw the largest logits, what QK-clip did, and each layer's lambda and noise."""
        section = Section("Attention")
        curves = [self._take("attention/max_logit", "largest logit")]
        threshold = self.run.setting("optimizer.qk_clip_threshold")
        points = curves[0].points
        if self.run.setting("optimizer.qk_clip") and is_number(threshold) and points:
            ends = sorted({points[0][0], points[-1][0]})
            line = [(step, float(threshold)) for step in ends]
            curves.append(Series("threshold of QK-clip", line, "quiet", is_dashed=True))
        looks: dict[str, Any] = {"bottom": 0.0, "can_be_log": True}
        absent = "Largest attention logit: not recorded."
        self._add(section, "Largest attention logit", "", curves, absent, **looks)
        clipped = self._take("attention/clipped_heads", "heads")
        if any(value for _, value in clipped.points):
            title, unit = "Heads that QK-clip scaled", "since the line before"
            self._add(section, title, unit, [clipped], bottom=0.0)
        elif clipped.points:
            section.missing.append("QK-clip scaled no head.")
        else:
            section.missing.append("QK-clip was off, or its heads were not recorded.")
        for prefix, title in (
            ("attention_max_logit/", "Largest logit by layer"),
            ("attention_lambda/", "lambda by layer"),
            ("attention_noise_over_signal/", "Noise maps' output over signal maps', by layer"),
        ):
            absent = f"{title}: not recorded."
            self._add(section, title, "", self._take_layers(prefix), absent)
        return section

    def speed(self) -> Section:
        """Draw throughput, the time of a step, waiting for data, and memory."""
        section = Section("Speed and memory")
        for key, title, unit, is_expected in (
            ("tokens_per_second", "Throughput", "tokens/s, all ranks", True),
            ("throughput/mfu(%)", "MFU", "% of the device's bf16 peak", False),
            ("time_metrics/step(s)", "Time of a step", "s", True),
            ("time_metrics/data_loading(%)", "Waiting for data", "% of the time", False),
            ("memory/max_reserved(GiB)", "Memory", "GiB reserved at most, rank 0", True),
        ):
            told = f"{title}: not recorded." if is_expected else ""
            # The first step may take a hundred times as long as any other: it compiles.
            looks = {"bottom": 0.0, "can_be_log": unit == "s"}
            self._add(section, title, unit, [self._take(key, title)], told, **looks)
        return section

    def rest(self) -> Section:
        """Draw what no other section has asked for, a chart for each family of names."""
        section = Section("Other figures")
        prefixes = dict.fromkeys(key.rpartition("/")[0] for key in self.undrawn)
        for prefix in prefixes:
            inside = [key for key in self.undrawn if key.rpartition("/")[0] == prefix]
            title = inside[0] if len(inside) == 1 else prefix or "Without a family"
            curves = [self._take(key, key.removeprefix(f"{prefix}/")) for key in inside]
            curves = _colored([curve for curve in curves if curve.points], "c")
            if len(curves) > _NUM_COLORS:
                curves = _spread(curves)
            self._add(section, title, "", curves)
        return section

    def _add(
        self,
        section: Section,
        title: str,
        unit: str,
        curves: Sequence[Series],
        absent: str = "",
        **looks: Any,
    ) -> None:
        drawn = [curve for curve in curves if curve.points]
        lost = sum(curve.num_not_finite for curve in curves)
        if drawn:
            note = looks.pop("note", "")
            if lost:
                note = f"{note} Not drawn: {lost:,} values that are no finite numbers.".strip()
            axis = {"span": self.span, "marks": self.marks}
            chart = Chart(title, unit, drawn, note, **axis, **looks)
            section.charts.append(chart)
        elif lost:
            section.missing.append(f"{title}: all {lost:,} values are no finite numbers.")
        elif absent:
            section.missing.append(absent)

    def _add_groups(self, section: Section, absent: str) -> None:
        title, curves = "Validation loss by group", self._take_groups("validation_loss/")
        if len(curves) == 1:
            section.missing.append(f"{title}: there is one group, {curves[0].name}, in all of it.")
        else:
            self._add(section, title, _NATS, curves, absent)

    def _take(self, key: str, name: str, **looks: Any) -> Series:
        self.undrawn = [other for other in self.undrawn if other != key]
        return series_of(self.history, key, name, **({"color": "c0"} | looks))

    def _take_groups(self, prefix: str) -> list[Series]:
        return [
            self._take(prefix + group, group, color=f"c{i % _NUM_COLORS}")
            for i, group in enumerate(self.groups)
            if prefix + group in self.keys
        ]

    def _take_by_name(self, prefix: str) -> list[Series]:
        """Take a family of figures; a source that is called as a group has the group's colour."""
        keys = [key for key in self.undrawn if key.startswith(prefix)]
        curves = [self._take(key, key.removeprefix(prefix)) for key in keys]
        if all(curve.name in self.groups for curve in curves):
            indices = [self.groups.index(curve.name) for curve in curves]
            return _colored(curves, "c", indices)
        return _colored(curves, "c") if len(curves) <= _NUM_COLORS else _spread(curves)

    def _take_layers(self, prefix: str) -> list[Series]:
        keys = [key for key in self.undrawn if key.startswith(prefix)]
        curves = [self._take(k, k.removeprefix(prefix).replace("_", " ")) for k in keys]
        if len(curves) > _NUM_COLORS:
            return _spread(curves)
        depth = max(len(curves) - 1, 1)
        indices = [round(i * (_NUM_COLORS - 1) / depth) for i in range(len(curves))]
        return _colored(curves, "d", indices)


def evaluation_charts(run: RunRecord) -> list[Chart]:
    """Return a chart for each metric that several steps have, a curve for each task."""
    curves: dict[str, dict[str, list[Point]]] = {}
    for result in run.evaluations:
        for task, found in result["tasks"].items():
            for metric, figures in found["metrics"].items():
                value = figures.get("value") if isinstance(figures, dict) else None
                if is_number(value):
                    by_task = curves.setdefault(metric, {})
                    by_task.setdefault(task, []).append((result["step"], value))
    charts = []
    for metric, by_task in curves.items():
        drawn = [Series(task, points) for task, points in by_task.items() if len(points) > 1]
        if drawn:
            is_many = len(drawn) > _NUM_COLORS
            charts.append(Chart(metric, "", _spread(drawn) if is_many else _colored(drawn, "c")))
    return charts


def _groups(run: RunRecord, keys: Sequence[str]) -> list[str]:
    """Return the groups of the data in the configuration's order, then as they are met."""
    sources = run.setting("curriculum.sources", [])
    is_list = isinstance(sources, list)
    named = [s.get("group") for s in sources if isinstance(s, dict)] if is_list else []
    prefixes = ("mixture/", "mixture_planned/", "validation_loss/")
    met = [key.removeprefix(p) for key in keys for p in prefixes if key.startswith(p)]
    return list(dict.fromkeys(name for name in [*named, *met] if isinstance(name, str)))


def _colored(
    curves: Sequence[Series], palette: str, indices: Sequence[int] | None = None
) -> list[Series]:
    indices = range(len(curves)) if indices is None else indices
    return [
        Series(c.name, c.points, f"{palette}{i % _NUM_COLORS}", c.is_dashed, c.num_not_finite)
        for c, i in zip(curves, indices, strict=True)
    ]


def _spread(curves: Sequence[Series]) -> list[Series]:
    """Return three curves in place of many: the least, the middle and the largest at each step."""
    by_step: dict[int, list[tuple[float, str]]] = {}
    for curve in curves:
        for step, value in curve.points:
            by_step.setdefault(step, []).append((value, curve.name))
    steps = sorted(by_step)
    lost = sum(curve.num_not_finite for curve in curves)
    middle = [(step, statistics.median(v for v, _ in by_step[step])) for step in steps]
    ends = {}
    for name, choose in (("least", min), ("largest", max)):
        chosen = [(step, choose(by_step[step])) for step in steps]
        where = f" (last: {chosen[-1][1][1]})" if chosen else ""
        ends[name] = f"{name}{where}", [(step, value) for step, (value, _) in chosen]
    return [
        Series(*ends["largest"], "d6", num_not_finite=lost),
        Series(f"middle of {len(curves)}", middle, "d3"),
        Series(*ends["least"], "d0"),
    ]
