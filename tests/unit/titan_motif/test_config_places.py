"""Folders that cannot be made or written into, and modules that are none."""

import os
from pathlib import Path

import pytest

import titan_motif.device  # noqa: F401
from titan_motif.config import JobConfig
from titan_motif.config_places import check_places, folder_problem


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path):
    assert folder_problem(tmp_path) is None
    assert folder_problem(tmp_path / "a/b/c") is None
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_its_way(tmp_path: Path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert folder_problem(file) == f"{file} is no folder"
    assert folder_problem(file / "run/tb") == f"{file} is no folder"
    assert folder_problem(tmp_path / "link/run") == f"{tmp_path}/link is no folder"
    assert folder_problem(tmp_path / ("x" * 300)) == "File name too long"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert folder_problem(tmp_path / "run") == f"{tmp_path} cannot be written into"


def job(tmp_path: Path) -> JobConfig:
    config = JobConfig()
    config.job.dump_folder = str(tmp_path / "run")
    config.training.dataset_path = str(tmp_path / "data")
    (tmp_path / "file").touch()
    return config


def test_each_folder_is_looked_at_where_it_is_used(tmp_path: Path):
    config = job(tmp_path)
    assert list(check_places(config)) == []
    bad = f"{tmp_path}/file/x"
    problem = f"is {bad!r}; {tmp_path}/file is no folder: a folder that can be written into is"
    for section, name, switch in (
        (config.checkpoint, "folder", "enable"),
        (config.metrics, "save_tb_folder", "enable_tensorboard"),
        (config.comm, "save_traces_folder", None),
        (config.profiling, "save_traces_folder", "enable_profiling"),
        (config.profiling, "save_memory_snapshot_folder", "enable_memory_snapshot"),
        (config.job, "save_config_file", None),
        (config.training, "dataset_path", None),
        (config.job, "dump_folder", None),
    ):
        old = getattr(section, name)
        setattr(section, name, f"{bad}/y.json" if name == "save_config_file" else bad)
        if switch:
            setattr(section, switch, True)
        ((key, told),) = check_places(config)
        assert key.endswith(f".{name}")
        assert told.startswith(problem) or name == "save_config_file"
        if switch:
            setattr(section, switch, False)
            assert list(check_places(config)) == []
        setattr(section, name, old)


def test_prepared_data_may_be_where_nothing_is_written(tmp_path: Path):
    config = job(tmp_path)
    config.training.dataset, config.training.dataset_path = "prepared", f"{tmp_path}/file"
    assert list(check_places(config)) == []


def test_modules_and_beginnings_of_names(tmp_path: Path):
    config = job(tmp_path)
    config.experimental.custom_import = "titan_motif.plugin"
    assert list(check_places(config)) == []
    for module in ("no_such_module", "json.no_such", "json.decoder.no_such", "..json", "a b"):
        config.experimental.custom_import = module
        ((key, told),) = check_places(config)
        assert key == "experimental.custom_import"
        assert told.startswith(f"is {module!r}; Python finds no such module here")
    config.experimental.custom_import = ""
    config.comm.save_traces_file_prefix = "a/b"
    ((key, told),) = check_places(config)
    assert (key, told) == (
        "comm.save_traces_file_prefix",
        "is 'a/b'; the beginning of a file's name is needed, without '/'",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_of_others(tmp_path: Path):
    tmp_path.chmod(0o500)
    assert folder_problem(tmp_path / "run") == f"{tmp_path} cannot be written into"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_where_root_may_write_by_its_rights_alone(tmp_path: Path, monkeypatch):
    assert folder_problem(Path("/proc/x/y")) == "/proc cannot be written into"
    monkeypatch.setattr(os, "access", lambda path, mode: True)  # what root is told
    assert folder_problem(Path("/proc/x")) == "/proc cannot be written into"
    tmp_path.chmod(0o500)
    expected = None if os.geteuid() == 0 else f"{tmp_path} cannot be written into"
    assert folder_problem(tmp_path / "run") == expected
    assert list(tmp_path.iterdir()) == []
