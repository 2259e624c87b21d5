"""The record of an experiment's prepared data: of other settings, none is used silently."""

import json
from dataclasses import asdict

import pytest

from titan_motif.experiments import data, tasks
from titan_motif.experiments.data import DataSettings, prepare_data

SETTINGS = DataSettings(
    text_megabytes=1,
    has_packages=False,
    task_documents=40,
    vocab_size=512,
    tokenizer_megabytes=1,
)


def write_record(folder, **changes):
    """Leave the record of data that were prepared with SETTINGS, but for some changes."""
    made_of = {**asdict(SETTINGS), "version": data.VERSION, "tasks_sha256": tasks.fingerprint()}
    (folder / data.RECORD).write_text(json.dumps({"settings": {**made_of, **changes}}))


def test_data_that_are_there_are_kept(tmp_path):
    write_record(tmp_path)
    assert prepare_data(tmp_path, SETTINGS)["settings"]["vocab_size"] == 512


@pytest.mark.parametrize("changes", [{"vocab_size": 1024}, {"version": 1}, {"unknown": 3}])
def test_data_of_other_settings_are_refused(tmp_path, changes):
    write_record(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"its data are of {next(iter(changes))} .*--data"):
        prepare_data(tmp_path, SETTINGS)


def test_data_of_other_generators_are_refused(tmp_path, monkeypatch):
    """A constant of the tasks that nobody wrote into the settings."""
    write_record(tmp_path)
    monkeypatch.setattr(tasks, "NUM_FACTS", 24)
    monkeypatch.setattr(tasks, "RETRIEVAL_QUESTIONS", 10)
    with pytest.raises(ValueError, match="its data are of tasks_sha256"):
        prepare_data(tmp_path, SETTINGS)


@pytest.mark.parametrize("name", ["text", "inputs", "notes.txt"])
def test_a_folder_of_other_things_is_refused_and_stays(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"holds {name}, and no record .*--data"):
        prepare_data(tmp_path, SETTINGS)
    assert (tmp_path / name / "mine.txt").read_text() == "mine"


def test_a_folder_that_an_earlier_call_was_filling_is_filled_anew(tmp_path, monkeypatch):
    def fail(folder, settings, made_of):
        (folder / "inputs").mkdir()
        raise OSError("no space")

    monkeypatch.setattr(data, "_make", fail)
    with pytest.raises(OSError, match="no space"):
        prepare_data(tmp_path, SETTINGS)
    monkeypatch.setattr(data, "_make", lambda folder, settings, made_of: {"made": True})
    assert prepare_data(tmp_path, SETTINGS) == {"made": True}
    assert not (tmp_path / data.UNFINISHED).exists()


def test_data_without_a_record_of_this_kind_are_refused(tmp_path):
    (tmp_path / data.RECORD).write_text('{"sources": {}}')
    with pytest.raises(ValueError, match="is no record of prepared data"):
        prepare_data(tmp_path, SETTINGS)
