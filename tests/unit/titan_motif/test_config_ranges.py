"""The range of every number, and what no text may be."""

import typing

import pytest

import titan_motif.device  # noqa: F401
from titan_motif.config import JobConfig
from titan_motif.config_keys import all_keys, value_of
from titan_motif.config_loading import _find
from titan_motif.config_ranges import RANGES, Range, check_ranges, check_texts
from titan_motif.config_refusals import reason_against

ELSEWHERE = {"watchdog.stall_seconds", "watchdog.slow_seconds", "curriculum.caps"}


def is_number(key: str) -> bool:
    kind = _find(JobConfig, key)
    members = {kind, *typing.get_args(kind)}
    return bool(members & {int, float, list[float]})


def test_every_number_that_is_served_has_a_range():
    numbers = {key for key in all_keys() if is_number(key) and not reason_against(key)}
    degrees = {key for key in numbers if key.startswith("parallelism.")}
    assert set(RANGES) == numbers - degrees - ELSEWHERE


def test_the_defaults_are_in_their_ranges():
    assert list(check_ranges(JobConfig())) == []
    assert list(check_texts(JobConfig())) == []


def test_both_ends_of_every_range_are_allowed_and_nothing_beyond():
    for key, allowed in RANGES.items():
        step = 1 if isinstance(allowed.low, int) else 1e-6
        for value, is_open in ((allowed.low, allowed.is_above), (allowed.high, allowed.is_below)):
            assert (allowed.problem(value) is None) != is_open, (key, value)
        beyond = allowed.low - step
        if not (beyond == -1 and allowed.minus_one is not None):
            assert allowed.problem(beyond), key
        assert allowed.problem(allowed.high * 2), key


@pytest.mark.parametrize(
    ("allowed", "value", "problem"),
    [
        (Range(1, 9), 0, "is 0; at least 1 is needed"),
        (Range(1, 9_000), 9_001, "is 9001; at most 9,000 is allowed"),
        (Range(1, 9, minus_one="all"), -1, None),
        (Range(1, 9, minus_one="all"), -2, "is -2; -1 (all) or at least 1 is needed"),
        (Range(0, 9, is_above=True), 0.0, "is 0.0; more than 0 is needed"),
        (Range(0.0, 1.0), 1.5, "is 1.5; 0.0 to 1.0 is allowed"),
        (Range(0.0, 1.0, is_below=True), 1.0, "is 1.0; 0.0 to below 1.0 is allowed"),
        (Range(0.0, 1.0, is_below=True), 0.0, None),
    ],
)
def test_what_is_allowed_is_told(allowed: Range, value: float, problem: str | None):
    assert allowed.problem(value) == problem


def with_value(key: str, value) -> JobConfig:
    config = JobConfig()
    section, _, name = key.rpartition(".")
    setattr(value_of(config, section), name, value)
    return config


def test_every_number_of_a_list_is_looked_at():
    config = with_value("model.args.lam_init", [0.1, -1.0, 3.0])
    told = "is -1.0; above -1.0 to below 1.0 is allowed"
    assert list(check_ranges(config)) == [("model.args.lam_init", told)]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("job.dump_folder", " ", "is ' '; a text is needed, such as './outputs'"),
        ("checkpoint.initial_load_path", "", "is ''; a text is needed, or none: leave it out"),
        ("experimental.custom_import", "  ", "is '  '; a text is needed or ''"),
        ("sft.data", ["a", " "], "is ['a', ' ']; entry 2 is blank, and a text is needed"),
        ("sft.data", ["a", "a"], "is ['a', 'a']; it names 'a' twice, and once is needed"),
        ("job.description", "", None),
        ("sft.chat_template", "", None),
        ("sft.data", ["a", "b"], None),
    ],
)
def test_texts(key: str, value, problem: str | None):
    found = list(check_texts(with_value(key, value)))
    assert found == ([(key, problem)] if problem else [])
