"""What a run has written, read as far as it is there and can be read."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from titan_motif.components.foreign_files import inside, parse_json, read_text
from titan_motif.components.history import (
    HISTORY_FILE,
    STARTS_FILE,
    average_tokens_per_second,
    in_order,
    read_lines,
)
from titan_motif.components.saved_steps import SavedStep, saved_steps
from titan_motif.run_folder import ENVIRONMENT, EVALUATIONS, RESOLVED_CONFIG, SUMMARY


@dataclass
class RunRecord:
    """A run's files as data: what is missing is empty, what cannot be read is told in problems."""

    folder: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    checkpoints: list[tuple[SavedStep, int]] = field(default_factory=list)
    """Saved steps, newest first, and their bytes."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Results of `titan-motif evaluate`, by step."""
    problems: list[str] = field(default_factory=list)

    def setting(self, key: str, default: Any = None) -> Any:
        """Return section.field of the resolved configuration."""
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def last_step(self) -> int:
        """The last step that anything is known of."""
        steps = [entry["step"] for entry in self.history[-1:]]
        return max([0, *steps, *([self.summary["step"]] if "step" in self.summary else [])])

    @property
    def is_summary_current(self) -> bool:
        """Whether the summary is of the last step, and not of an end that the run went beyond."""
        return self.summary.get("step") == self.last_step > 0

    @property
    def tokens_per_second(self) -> float | None:
        """The mean rate of all recorded steps."""
        rates = [e for e in self.history if is_number(e.get("tokens_per_second"))]
        return average_tokens_per_second([e for e in rates if e["tokens_per_second"] > 0])

    def last(self, name: str) -> float | None:
        """Return the last recorded value of a figure."""
        return next((e[name] for e in reversed(self.history) if is_number(e.get(name))), None)


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder.

    Raises: ValueError if there is no such folder, or no run in it
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; the folder of a run is needed")
    known = (RESOLVED_CONFIG, HISTORY_FILE, SUMMARY, ENVIRONMENT)
    if not any((folder / name).is_file() for name in known):
        raise ValueError(f"{folder}: holds no run: none of {', '.join(known)} is there")
    run = RunRecord(folder)
    entries, broken_entries = _read_lines(run, HISTORY_FILE)
    run.history = in_order(entries)
    run.starts, broken_starts = _read_lines(run, STARTS_FILE)
    for name, count in ((HISTORY_FILE, broken_entries), (STARTS_FILE, broken_starts)):
        if count:
            plural = "line" if count == 1 else "lines"
            run.problems.append(f"{name}: {count} {plural} could not be read and are left out")
    run.summary = _read_table(run, SUMMARY)
    if run.summary and type(run.summary.get("step")) is not int:
        run.problems.append(f"{SUMMARY}: names no step and is left out")
        run.summary = {}
    run.environment = _read_table(run, ENVIRONMENT)
    run.config_text = _text_of(run, RESOLVED_CONFIG) or ""
    run.config = _parsed(run, RESOLVED_CONFIG, run.config_text, tomli.loads)
    run.checkpoints = _read_checkpoints(run)
    run.evaluations = list(_read_evaluations(run))
    return run


def is_number(value: Any) -> bool:
    """Return whether a value can be drawn: a finite number."""
    return type(value) in (int, float) and abs(value) < 1e300


def _read_table(run: RunRecord, name: str) -> dict[str, Any]:
    """Return a file's table; an empty one if it is not there, or, which is told, not readable."""
    text = _text_of(run, name)
    return _parsed(run, name, text, _json) if text is not None else {}


def _json(text: str) -> Any:
    return parse_json(text, is_record=True)


def _text_of(run: RunRecord, name: str) -> str | None:
    """Return a file's text; None if it is not there, or, which is told, not readable."""
    if not (run.folder / name).is_file():
        return None
    try:
        return read_text(inside(run.folder, name))
    except (OSError, ValueError) as error:
        _tell(run, name, error)
        return None


def _parsed(run: RunRecord, name: str, text: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        table = parse(text)
    except (ValueError, RecursionError) as error:
        _tell(run, name, error)
        return {}
    if not isinstance(table, dict):
        _tell(run, name, "no table")
        return {}
    return table


def _tell(run: RunRecord, name: str, problem: object) -> None:
    first_line = str(problem).partition("\n")[0]
    run.problems.append(f"{Path(name).name}: cannot be read ({first_line})")


def _read_lines(run: RunRecord, name: str) -> tuple[list[dict[str, Any]], int]:
    try:
        return read_lines(inside(run.folder, name))
    except ValueError as error:
        _tell(run, name, error)
        return [], 0


def _read_checkpoints(run: RunRecord) -> list[tuple[SavedStep, int]]:
    """Return the saved steps and their bytes; of steps that lie elsewhere, none."""
    name = str(run.setting("checkpoint.folder", "checkpoint"))
    try:
        folder = inside(run.folder, name)
        for path in folder.glob("step-*"):
            inside(run.folder, path.relative_to(run.folder))
    except (OSError, ValueError) as error:
        run.problems.append(f"saved steps: not looked for in checkpoint.folder: {error}")
        return []
    return [
        (saved, sum(file.stat().st_size for file in Path(saved.path).rglob("*") if file.is_file()))
        for saved in saved_steps(folder)
    ]


def _read_evaluations(run: RunRecord) -> Iterator[dict[str, Any]]:
    found = []
    for path in (run.folder / EVALUATIONS).glob("step-*.json"):
        named = re.fullmatch(r"step-(\d+)\.json", path.name)
        table = _read_table(run, f"{EVALUATIONS}/{path.name}") if named else {}
        if not table:
            continue
        tasks = table.get("tasks")
        is_whole = isinstance(tasks, dict) and all(
            isinstance(task, dict) and isinstance(task.get("metrics"), dict)
            for task in tasks.values()
        )
        if is_whole:
            found.append({**table, "step": int(named[1])})
        else:
            run.problems.append(f"{path.name}: holds no results of titan-motif evaluate")
    yield from sorted(found, key=lambda table: table["step"])
