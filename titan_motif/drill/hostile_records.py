"""Hostile records of a run, which `titan-motif report` makes a page of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from titan_motif.components.history import HISTORY_FILE
from titan_motif.drill.hostile_case import CANARY, Case, Place
from titan_motif.report.page import render
from titan_motif.report.record import read_run
from titan_motif.run_folder import ENVIRONMENT, EVALUATIONS, RESOLVED_CONFIG, SUMMARY

_SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
_TAGS = ("<script>alert", "<img src=x")


def _read_page(folder: Path) -> str:
    """Return a run's page; ValueError if a record's text stands in it as HTML."""
    page = render(read_run(folder))
    for tag in _TAGS:
        if tag in page:
            raise ValueError(f"the page has\n{tag} of a record")  # two lines: it is not held
    return page


def _run(place: Place, config: str = "", summary: Any = None, lines: Any = ()) -> None:
    place.write(RESOLVED_CONFIG, config or '[job]\ndescription = "a run"\n')
    place.write(SUMMARY, json.dumps({"step": 2} if summary is None else summary))
    first = {"step": 1, "loss": 2.0, "time": 1e9}
    entries = [first, *lines]
    place.write(
        HISTORY_FILE, "\n".join(x if isinstance(x, str) else json.dumps(x) for x in entries)
    )


def _scripts(place: Place) -> None:
    _run(
        place,
        f"[job]\ndescription = {json.dumps(_SCRIPT)}\n",
        {"step": 2, "samples": [_SCRIPT], "validation_losses": {_SCRIPT: 1.0}},
        [
            {"step": 2, "loss": 1.0, f"mixture/{_SCRIPT}": 0.5, f"validation_loss/{_SCRIPT}": 1.0},
            {"step": 2, "loss": 1.0, f"optimizer/{_SCRIPT}": 0.5},
        ],
    )
    place.write(ENVIRONMENT, json.dumps({"device_name": _SCRIPT, "world_size": 1}))
    results = {"tasks": {_SCRIPT: {"metrics": {_SCRIPT: {"value": 1.0}}}}}
    place.write(f"{EVALUATIONS}/step-2.json", json.dumps(results))


def _numbers(place: Place) -> None:
    huge = '{"step": 2, "loss": %s, "time": 1e308, "tokens_per_second": NaN}' % ("9" * 4000)
    _run(place, lines=[huge, '{"step": -5, "loss": Infinity}', '{"step": 3, "loss": [1]}'])


_RUNS: dict[str, Callable[[Place], Any]] = {
    "of scripts for names": _scripts,
    "of numbers without end": _numbers,
    "with a line nested 200,000 deep": lambda p: _run(p, lines=["[" * 200_000]),
    "with settings nested 20,000 deep": lambda p: _run(p, "a = " + "[" * 20_000),
    "whose steps are elsewhere": lambda p: _steps_elsewhere(p, "../outside"),
    "whose summary is a link out": lambda p: _linked(p, SUMMARY, {"step": 1, "samples": [CANARY]}),
    "whose history is a link out": lambda p: _linked(p, HISTORY_FILE, {"step": 1, CANARY: 1.0}),
}


def _steps_elsewhere(place: Place, folder: str) -> None:
    place.secret("step-1/seal.json", json.dumps({"format": CANARY}))
    _run(place, f"[checkpoint]\nfolder = {json.dumps(folder)}\n")


def _linked(place: Place, name: str, content: Any) -> None:
    _run(place)
    (place.inside / name).unlink()
    place.link_out(name, json.dumps(content))


_QUICK = ("of scripts for names", "whose steps are elsewhere")

CASES = tuple(
    Case(f"a run {name}", build, _read_page, is_refused=False, is_quick=name in _QUICK)
    for name, build in _RUNS.items()
)
