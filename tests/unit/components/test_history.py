"""The history of a run: what is read of it, what a new start drops, and its average speed."""

import json
from pathlib import Path

import pytest

from titan_motif.components.history import (
    HISTORY_FILE,
    average_tokens_per_second,
    forget_history_after,
    read_history,
    read_lines,
)

ENTRIES = [
    {"step": 1, "loss": 5.0},
    {"step": 2, "loss": 4.0},
    {"step": 2, "validation_loss": 4.5},
    {"step": 3, "loss": 3.0},
]


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """The entries, and a line that a killed run did not finish."""
    lines = [json.dumps(entry) + "\n" for entry in ENTRIES]
    (tmp_path / HISTORY_FILE).write_text("".join(lines) + '{"step": 4, "lo')
    return tmp_path / HISTORY_FILE


@pytest.mark.parametrize(("step", "num_kept"), [(0, 0), (1, 1), (2, 3), (3, 4), (9, 4)])
def test_a_start_drops_what_lies_beyond_it(history: Path, step: int, num_kept: int):
    assert forget_history_after(step, history) == max(3 - step, 0)
    assert read_history(history.parent) == ENTRIES[:num_kept]
    assert [path.name for path in history.parent.iterdir()] == [HISTORY_FILE]
    with history.open("a") as file:
        file.write(json.dumps({"step": step + 1, "loss": 1.0}) + "\n")
    assert read_history(history.parent)[-1] == {"step": step + 1, "loss": 1.0}


def test_no_history_is_nothing_to_drop(tmp_path: Path):
    assert forget_history_after(0, tmp_path / HISTORY_FILE) == 0
    assert read_history(tmp_path) == []
    assert average_tokens_per_second([]) is None


def test_what_is_no_entry_is_counted(history: Path):
    whole = history.read_text()
    history.write_text('3\n{"loss": 1.0}\n{"step": true}\n' + whole)
    assert read_lines(history) == (ENTRIES, 4)
    history.write_bytes(b"\xff\n")
    assert read_lines(history) == ([], 1)


def test_the_average_speed_is_tokens_over_time():
    """Steps of 12 tokens: one in 2 s, then three in 1 s."""
    history = [
        {"step": 1, "loss": 5.0, "tokens_per_second": 6.0},
        {"step": 2, "validation_loss": 4.5},
        {"step": 4, "loss": 3.0, "tokens_per_second": 36.0},
    ]
    assert average_tokens_per_second(history) == pytest.approx(4 * 12 / 3)
