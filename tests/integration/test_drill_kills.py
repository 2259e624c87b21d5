"""Kills: a run that is killed in a save goes on bit for bit; and what the drill would notice."""

import math
import pkgutil
import shutil
from collections import Counter
from pathlib import Path

import pytest

from titan_motif.drill import kills, stops
from titan_motif.drill.kills import KILLS, Case, StepWatch, draw_case, reference_run, run_case
from titan_motif.drill.run_record import first_difference, read_run
from titan_motif.drill.servant import Servant
from titan_motif.drill.small_job import small_job


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("drill") / "small"


def test_killed_within_a_save_it_goes_on_and_another_end_would_be_noticed(
    shared: Path, tmp_path: Path
):
    reference = reference_run(shared, 1)
    case = Case("async", 1, None, False, "save", 9, after_seconds=0.02)
    outcome = run_case(case, tmp_path, small_job(shared), reference)
    assert outcome.is_held, outcome.told

    found = read_run(tmp_path / "run")
    assert first_difference(found, reference) is None
    other = dict(reference.figures)
    other[14] = other[14] | {"loss": math.nextafter(other[14]["loss"], 9)}
    faked = first_difference(found, reference._replace(figures=other))
    assert faked is not None
    assert faked.startswith("loss of step 14 is ")
    swapped = reference.sequences | {15: reference.sequences[15][::-1]}
    assert first_difference(found, reference._replace(sequences=swapped)).startswith("sequence 0 ")
    name = min(reference.state)
    told = first_difference(found, reference._replace(state=reference.state | {name: "0"}))
    assert told == f"1 parts of the last checkpoint differ, {name} the first of them"


def test_a_step_that_goes_too_early_is_noticed(tmp_path: Path):
    def save(step: int) -> None:
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / "seal.json").touch()

    watch = StepWatch(tmp_path)
    for step in (3, 6, 9, 12):
        save(step)
        watch.look()
    shutil.rmtree(tmp_path / "step-3")
    watch.look()
    assert watch.lost is None
    shutil.rmtree(tmp_path / "step-6")
    watch.look()
    assert watch.lost == "step 6 was whole and has gone; whole are [9, 12]"


def test_a_servant_that_dies_or_hangs_or_fails_is_told():
    for name, given, seconds, told in (
        ("os:_exit", 3, 30, "the process ended with code 3"),
        ("time:sleep", 60, 0.1, "no answer in 0.1 s"),
        ("math:sqrt", -1, 30, "ValueError at .*: math domain error"),
    ):
        servant = Servant(pkgutil.resolve_name, (name,))
        with pytest.raises(RuntimeError, match=told):
            servant.ask(given, seconds=seconds)
        servant.close()


def test_cases_follow_from_their_numbers():
    cases = [draw_case(number) for number in range(KILLS.count)]
    assert cases == [draw_case(number) for number in range(KILLS.count)]
    for mode in ("disabled", "async"):
        for num_ranks in (1, 2):
            assert sum((c.mode, c.num_ranks) == (mode, num_ranks) for c in cases) == 50
    assert sum(case.moment == "save" for case in cases) > KILLS.count / 2
    assert 0 < sum(case.step <= 3 for case in cases) <= KILLS.count / 20
    assert {case.step for case in cases if case.moment == "step"} >= set(range(4, 16))
    assert any(case.rank is not None for case in cases)
    assert any(case.launches for case in cases)


def test_stops_fall_into_all_of_a_run():
    cases = [stops.draw_case(number) for number in range(stops.STOPS.count)]
    assert cases == [stops.draw_case(number) for number in range(stops.STOPS.count)]
    counts = Counter(case.moment for case in cases)
    assert counts["step"] > 15
    assert counts["save"] > 15
    assert counts["validation"] > 5
    assert len({case.step for case in cases}) > 9


@pytest.mark.slow
@pytest.mark.parametrize("number", [*range(4, 12), 19])
def test_killed_at_any_moment_it_goes_on(shared: Path, number: int):
    folder = shared.parent / str(number)
    folder.mkdir()
    outcome = kills.run(number, folder)
    assert outcome.is_held, outcome.told
