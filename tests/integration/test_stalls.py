"""A rank that stands still or lacks its data ends the run: soon, with a sentence that names it."""

from pathlib import Path

import pytest

from titan_motif.drill.stalls import KINDS, Kind, can_mount, run_full_disk, run_stall

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_it_is_named(kind: Kind, number: int, tmp_path: Path):
    """Each rank of two, and what is done to it by turns."""
    folder = tmp_path / "case"
    folder.mkdir()
    outcome = run_stall(kind, number, folder)
    assert outcome.is_held, outcome.told


@pytest.mark.skipif(not can_mount(), reason="mounting a file system needs root")
@pytest.mark.parametrize("number", range(4))
def test_a_full_disk_is_told_and_costs_nothing(number: int, tmp_path: Path):
    folder = tmp_path / "case"
    folder.mkdir()
    outcome = run_full_disk(number, folder)
    assert outcome.is_held, outcome.told
