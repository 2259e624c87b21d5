"""A run's page: its values, what it says of what is missing, and that it is one safe file."""

import base64
import hashlib
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from titan_motif import cli
from titan_motif.report.charts import Charts, evaluation_charts
from titan_motif.report.facts import state_of, told_seconds
from titan_motif.report.page import render, view
from titan_motif.report.record import RunRecord, read_run
from titan_motif.report.series import Axis, means, thin, value_axis

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'> & \"quoted\""
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """The page's elements, with the check that each is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.text: list[str] = []
        self.data: list[dict] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            if data.lstrip().startswith("{"):
                self.data.append(json.loads(data))
        elif self.open[-1:] != ["style"]:
            self.text.append(data)

    def told(self) -> str:
        return " ".join(" ".join(self.text).split())


def line(step: int, **figures: float) -> dict[str, float]:
    return {
        "step": step,
        "loss": 8.0 / step,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "tokens_per_second": 50.0,
        "time_metrics/step(s)": 2.0,
        "n_tokens_seen": 100 * step,
        "time": 1000.0 + step,
        **figures,
    }


def write_run(folder: Path, lines: list[dict], **summary) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    (folder / "config.resolved.toml").write_text(
        '[job]\ndescription = "A run"\n[training]\nsteps = 8\n[optimizer]\nlr = 0.25\n'
    )
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def charts_of(run: RunRecord) -> dict:
    return {chart.title: chart for section in Charts(run).sections() for chart in section.charts}


def test_charts_have_the_points_of_the_history(tmp_path: Path):
    lines = [
        line(step, **{"mixture/b": 0.25, "mixture/a": 0.75, "muon/ratio": step / 3, "new": 5.0})
        for step in (1, 2, 4, 8)
    ]
    lines += [{"step": s, "validation_loss": 2.0, "validation_loss/a": 1 / s} for s in (4, 8)]
    lines += [{"step": 8, "validation_loss": 2.0, "validation_loss/b": 0.5, "validation_loss/a": 1}]
    run = read_run(write_run(tmp_path, lines))
    charts = charts_of(run)
    loss, validation = charts["Loss"].series
    assert loss.points == [(1, 8.0), (2, 4.0), (4, 2.0), (8, 1.0)]
    assert validation.points == [(4, 2.0), (8, 2.0)]
    assert charts["Muon"].series[0].points == [(1, 1 / 3), (2, 2 / 3), (4, 4 / 3), (8, 8 / 3)]
    assert charts["new"].series[0].points[-1] == (8, 5.0)  # a figure that nobody foresaw
    colors = {
        title: {series.name: series.color for series in charts[title].series}
        for title in ("Mixture", "Validation loss by group")
    }
    assert colors["Mixture"] == colors["Validation loss by group"]
    assert len(set(colors["Mixture"].values())) == 2
    drawn = view(charts["Loss"])
    assert drawn["data"]["values"] == [[8.0, 4.0, 2.0, 1.0], [2.0, 2.0]]
    assert drawn["rows"][0]["path"].startswith("M0 ")
    assert "first 8 at 1, last 1 at 8" in drawn["spoken"]


def test_a_first_step_that_compiles_leaves_the_others_readable(tmp_path: Path):
    lines = [line(step, **{"time_metrics/step(s)": 0.1 + 20.0 * (step == 1)}) for step in (1, 2, 3)]
    chart = charts_of(read_run(write_run(tmp_path, lines)))["Time of a step"]
    assert value_axis(chart).is_log
    assert view(chart)["unit"] == "s, logarithmic"


def test_a_long_curve_is_thinned_and_keeps_its_peaks():
    points = [(step, float(step % 7)) for step in range(1, 100_001)]
    points[54_321] = (54_322, 999.0)
    points[54_323] = (54_324, -999.0)
    kept = thin(points, 100)
    assert len(kept) <= 202
    assert {points[0], points[-1], points[54_321], points[54_323]} <= set(kept)
    assert kept == sorted(kept)
    assert set(kept) <= set(points)
    middle = means(points, 100)
    assert len(middle) == 100
    assert middle[0] == pytest.approx((500.5, 2.997), abs=0.01)
    assert thin(points[:200], 100) == means(points[:200], 100) == points[:200]


def test_many_layers_become_three_curves(tmp_path: Path):
    layers = {f"attention_lambda/layer_{i}": i / 10 for i in range(12)}
    run = read_run(write_run(tmp_path, [line(1, **layers), line(2, **layers)]))
    largest, middle, least = charts_of(run)["lambda by layer"].series
    assert (largest.name, largest.points[-1]) == ("largest (last: layer 11)", (2, 1.1))
    assert (middle.name, middle.points[-1]) == ("middle of 12", (2, pytest.approx(0.55)))
    assert (least.name, least.points[-1]) == ("least (last: layer 0)", (2, 0.0))


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Axis(1, 385), [100, 200, 300]),
        (Axis(0.9, 1100, is_log=True), [1, 10, 100, 1000]),
        (Axis(-0.31, 0.29), [-0.3, -0.2, -0.1, 0, 0.1, 0.2]),
    ],
)
def test_ticks_are_round(axis: Axis, expected: list[float]):
    assert axis.ticks() == pytest.approx(expected)


def test_the_page_is_well_formed_and_safe(tmp_path: Path):
    """Whatever a run's texts hold is shown as text, and nothing but the page's script may run."""
    key = f"mixture/{HOSTILE}"
    lines = [line(step, **{key: 0.5, "mixture/b": 0.5}) for step in (1, 2)]
    folder = write_run(tmp_path, lines, step=2, samples=[HOSTILE, "<b>\x00\u2028"], train_loss=1.0)
    (folder / "environment.json").write_text(json.dumps({"device_name": HOSTILE, "world_size": 2}))
    text = (folder / "config.resolved.toml").read_text()
    (folder / "config.resolved.toml").write_text(text.replace("A run", "<img src=x>"))
    (folder / "evaluation").mkdir()
    tasks = {HOSTILE: {"metrics": {"acc": {"value": 0.5, "stderr": 0.25}}}}
    (folder / "evaluation/step-2.json").write_text(json.dumps({"tasks": tasks}))
    html = render(read_run(folder))
    page = Page(html)
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [attributes for attributes in scripts if attributes.get("type") is None] == [{}]
    assert not any(tag in ("img", "link", "iframe", "b") for tag, _ in page.tags if tag != "b")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    outside = [
        a for _, a in page.tags for n in ("src", "href") if not a.get(n, "#").startswith("#")
    ]
    assert not outside
    assert "http" not in html.replace("http-equiv", "")
    told = page.told()
    assert told.count(HOSTILE) >= 5  # sample, legend, task, and the device in two places
    assert f"on 2 x {HOSTILE}" in told
    assert "0.5000 ± 0.2500" in told
    assert "Training loss 1.0000 nats/token, mean of the last tenth's logged steps" in told
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy
    assert page.headings[0] == 1
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    tables = html.count("<table")
    assert tables == html.count("<caption") == html.count("<thead>")


def test_hardware_versions_and_commit_are_told(tmp_path: Path):
    folder = write_run(tmp_path, [line(1)], step=1)
    environment = {
        "device_name": "NVIDIA H200",
        "world_size": 8,
        "versions": {"torch": "2.13.0", "triton": "3.6.0"},
        "git_commit": "0123456789abcdef",
        "git_has_changes": True,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    told = Page(render(read_run(folder))).told()
    for text in (
        "on 8 x NVIDIA H200",
        "torch 2.13.0",
        "triton 3.6.0",
        "0123456789abcdef",
        "the source tree had changes that its commit does not hold",
    ):
        assert text in told
    assert "has no environment.json" not in told


def test_every_missing_part_is_told(tmp_path: Path):
    (tmp_path / "environment.json").write_text("{}")
    told = Page(render(read_run(tmp_path))).told()
    for text in (
        "Begun, no step recorded yet.",
        "Loss: not recorded.",
        "Nothing was validated yet.",
        "Mixture: not recorded.",
        "Learning rate: not recorded.",
        "lambda by layer: not recorded.",
        "Throughput: not recorded.",
        "Memory: not recorded.",
        "No evaluation lies in",
        "No samples were written",
        "No saved steps lie in",
        "keeps no list of its starts",
        "has no config.resolved.toml",
        "has no environment.json",
    ):
        assert text in told


def test_one_step_and_values_that_are_no_numbers(tmp_path: Path):
    lines = [line(3, **{"loss": float("nan"), "odd/text": "word", "lr": None})]
    run = read_run(write_run(tmp_path, lines))
    told = Page(render(run)).told()
    assert "the training loss was not finite in 1 lines from step 3" in told
    assert "Training loss not finite last recorded step" in told
    assert "Learning rate: not recorded." in told
    gradient = view(charts_of(run)["Gradient norm, before clipping"])
    assert gradient["rows"][0]["dots"] == "M1000 500h0"
    assert gradient["data"]["values"] == [[1.0]]


def test_broken_files_are_told(tmp_path: Path):
    folder = write_run(tmp_path, [line(1), line(2)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('no json\n{"step": 3, "lo')
    (folder / "summary.json").write_text("{")
    (folder / "config.resolved.toml").write_text("[job")
    (folder / "evaluation").mkdir()
    (folder / "evaluation/step-1.json").write_text('{"tasks": 3}')
    told = Page(render(read_run(folder))).told()
    assert "metrics.jsonl: 2 lines could not be read and are left out" in told
    assert "summary.json: cannot be read (" in told
    assert "config.resolved.toml: cannot be read (" in told
    assert "step-1.json: holds no results of titan-motif evaluate" in told
    assert "Stopped after step 2, " in told


def test_how_far_a_run_is(tmp_path: Path):
    folder = write_run(tmp_path, [line(1), line(4)])
    assert state_of(read_run(folder), 1010) == (
        "under way at step 4 of 8, last written 6 s before this page"
    )
    assert state_of(read_run(folder), 9004) == (
        "stopped after step 4 of 8, last written 2 h 13 min before this page"
    )
    write_run(folder, [line(1), line(4)], step=4)
    assert state_of(read_run(folder)) == "ended at step 4 of 8"
    write_run(folder, [line(1), line(8)], step=8)
    assert state_of(read_run(folder)) == "finished at step 8 of 8"
    write_run(folder, [line(1), line(8)], step=4, train_loss=3.5)
    told = Page(render(read_run(folder), 1010)).told()
    assert "summary.json is of step 4, which the run went beyond" in told
    assert "Training loss 1.0000 nats/token, last recorded step" in told
    assert "Tokens 800 in 8 steps" in told
    assert "Time 16 s in steps" in told
    assert (told_seconds(0.2), told_seconds(90_000)) == ("0 s", "1 d 1 h")


def test_several_starts_are_listed_and_marked(tmp_path: Path):
    folder = write_run(tmp_path, [line(step) for step in (1, 2, 4, 8)])
    starts = [
        {"step": 0, "time": 0, "lost_steps": 0, "versions": {"torch": "1"}},
        {"step": 4, "time": 60, "lost_steps": 3, "versions": {"torch": "2"}},
    ]
    (folder / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    run = read_run(folder)
    assert charts_of(run)["Loss"].marks == [4]
    assert view(charts_of(run)["Loss"])["marks"] == [round(2000 * 3 / 7)]
    told = Page(render(run)).told()
    assert "1970-01-01 00:01 UTC 4 3" in told
    assert "the starts of the run had different versions" in told


def test_settings_that_differ_come_with_their_defaults(tmp_path: Path):
    told = Page(render(read_run(write_run(tmp_path, [line(1)])))).told()
    assert "optimizer.lr 0.25 0.0008" in told
    assert 'job.description "A run" "default job"' in told


def test_evaluations_are_a_table_and_curves(tmp_path: Path):
    folder = write_run(tmp_path, [line(1)])
    (folder / "evaluation").mkdir()
    for step in range(1, 7):
        metrics = {"acc": {"value": step / 10, "stderr": None}}
        tasks = {"sums": {"metrics": metrics, "samples": 20, "shots": None}}
        (folder / f"evaluation/step-{step}.json").write_text(json.dumps({"tasks": tasks}))
    run = read_run(folder)
    (chart,) = evaluation_charts(run)
    assert chart.series[0].points == [(step, step / 10) for step in range(1, 7)]
    told = Page(render(run)).told()
    assert "2 earlier steps are not shown" in told
    assert "sums acc 0.6000 0.5000 0.4000 0.3000 20 / -" in told


def test_the_command_writes_one_file(tmp_path: Path, capsys):
    folder = write_run(tmp_path / "run", [line(1)])
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"report: {folder}/report.html (")
    output = tmp_path / "page.html"
    assert cli.main(["report", str(folder), "--output", str(output)]) == 0
    assert output.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "no" / "page.html")]) == 1
    assert cli.main(["report", str(folder), "--output", str(tmp_path)]) == 1
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 1
    assert cli.main(["report", str(tmp_path)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "nowhere: no such folder" in errors[2]
    assert "holds no run: none of config.resolved.toml" in errors[3]


def test_a_wheel_has_the_page_s_parts():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "titan_motif/report"
    parts = [path.name for path in folder.iterdir() if path.suffix in (".html", ".css", ".js")]
    assert sorted(settings["package-data"]["titan_motif.report"]) == sorted(parts)
    assert "titan_motif.report" in settings["packages"]
