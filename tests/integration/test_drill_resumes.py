"""Resumes: at points that differ, bit for bit; on other numbers of ranks nothing is lost."""

from pathlib import Path

import pytest

from titan_motif.config_loading import load_config
from titan_motif.curriculum import build_loader
from titan_motif.drill import resumes
from titan_motif.drill.resumes import LONG, NUM_COMPARED, POINTS, RESUMES, compare_chain
from titan_motif.drill.run_record import RunRecord
from titan_motif.drill.small_job import small_job


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("drill") / "small"


def test_the_points_differ_and_leave_steps_to_compare(shared: Path):
    config = load_config([f"--job.config_file={small_job(shared)}", *LONG], 1)
    loader = build_loader(config, 0, 1)
    steps = [point.step(loader) for point in POINTS]
    assert len(set(steps)) == len(POINTS)
    assert max(steps) + NUM_COMPARED <= loader.plan.num_steps
    first, second, third = loader.plan.phase_steps[:3]
    assert (first, loader.plan.step(second - 1).phase, loader.plan.step(second).phase) == (0, 0, 1)
    assert loader.plan.step(third - 1).seq_len < loader.plan.step(third).seq_len


def test_a_dropped_a_repeated_and_a_moved_sequence_are_noticed():
    figures = {step: {"loss": 4.0, "lr": 1e-3} for step in (1, 2)}
    reference = RunRecord(figures, {1: ["a", "b"], 2: ["c", "d"]}, {})
    assert compare_chain(reference, reference, 2).is_held
    for wrong in (["c"], ["c", "d", "d"], ["b", "d"], ["d", "c"]):
        found = reference._replace(sequences=reference.sequences | {2: wrong})
        outcome = compare_chain(found, reference, 2)
        assert not outcome.is_held
        assert "step 2 read" in outcome.told
    far = reference._replace(figures=figures | {2: {"loss": 4.1, "lr": 1e-3}})
    assert not compare_chain(far, reference, 2).is_held


@pytest.mark.slow
@pytest.mark.parametrize("number", range(RESUMES.count))
def test_it_is_resumed_bit_for_bit(shared: Path, number: int):
    folder = shared.parent / str(number)
    folder.mkdir()
    outcome = resumes.run(number, folder)
    assert outcome.is_held, outcome.told
