"""docs/reference.md: it is what the dataclasses say, and no setting is missing."""

import dataclasses
import re
from pathlib import Path

import pytest

from titan_motif import reference
from titan_motif.config import JobConfig
from titan_motif.config_data import PhaseSettings, SourceSettings
from titan_motif.config_keys import all_keys
from titan_motif.config_refusals import NOT_SERVED

PAGE = Path(__file__).resolve().parents[3] / "docs/reference.md"


def test_the_committed_page_is_what_is_generated():
    assert PAGE.read_text() == reference.reference(), (
        "run `python -m titan_motif.reference --write docs/reference.md`"
    )


def test_every_setting_is_in_it_exactly_once_and_has_a_meaning():
    rows = re.findall(r'^\| <a id="([^"]+)"></a>`[^`]+` \|(.+)\|$', PAGE.read_text(), re.M)
    tables = {"curriculum.sources": SourceSettings, "curriculum.phases": PhaseSettings}
    expected = list(all_keys())
    for key, item in tables.items():
        expected += [f"{key}.{field.name}" for field in dataclasses.fields(item)]
    assert sorted(key for key, _ in rows) == sorted(expected)
    for key, rest in rows:
        *_, meaning = re.split(r"(?<!\\)\|", rest)
        assert len(meaning.strip()) >= 8, key


def test_what_is_refused_is_told_as_not_served():
    text = PAGE.read_text()
    served, _, refused = text.partition("## Not served")
    for key, reason in NOT_SERVED.items():
        assert f'id="{key}' not in served, key
        assert re.search(rf'id="{re.escape(key)}[".].*\| {re.escape(reason)} \|', refused), key
    assert 'id="parallelism.pipeline_parallel_degree"' in refused


def test_the_table_of_sections_has_those_that_are_served():
    served = re.findall(r"^## `\[(\w+)", PAGE.read_text(), re.M)
    text = (PAGE.parent / "configuration.md").read_text()
    table = text[text.index("| section |") :].partition("\n\n")[0]
    heads = [row.split(" | ")[0] for row in table.splitlines()[2:]]
    named = [name for head in heads for name in re.findall(r"`(\w+)", head)]
    assert set(named) == set(served)


def test_no_meaning_is_given_to_what_is_no_setting():
    assert set(reference.MEANINGS) <= set(all_keys())


def test_the_class_that_declared_a_field_last_says_what_it_means():
    meanings = {setting.key: setting.meaning for setting in reference.settings(JobConfig)}
    assert meanings["training.local_batch_size"].startswith("Sequences in a rank's micro-batch;")
    assert meanings["training.seq_len"] == "Sequence length"  # torchtitan's


def test_a_field_without_a_docstring_is_an_error():
    @dataclasses.dataclass
    class Section:
        told: int = 1
        """What it is."""
        untold: int = 2

    with pytest.raises(ValueError, match=r"untold has no docstring"):
        list(reference.settings(Section))
