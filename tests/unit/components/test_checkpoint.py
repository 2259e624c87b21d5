"""Checkpoints: only sealed steps count, for continuing and for keeping the last k."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import titan_motif.device  # noqa: F401

# isort: split

from saved_jobs import Job, drop_metadata, shorten, steps_in

from titan_motif.components.checkpoint import (
    CheckpointError,
    DifferentDataError,
)
from titan_motif.components.lr_schedule import TokenScheduler, WarmupStableDecay
from titan_motif.components.saved_steps import saved_steps
from titan_motif.components.seal import begin_writing, seal_problem


def test_a_resumed_job_is_the_one_that_was_saved(job: Callable[..., Job]):
    saved = job().train(20)
    resumed = job()
    assert resumed.manager.load() is True
    assert resumed.manager.resumed_from == 20
    assert resumed.everything() == saved.everything()
    assert resumed.train(25).everything() == saved.train(25).everything()


def test_another_kind_of_schedule_is_refused_in_one_line(job: Callable[..., Job]):
    """Checkpoints of before the schedule counted tokens hold the state of torchtitan's."""
    job().train(10)
    resumed = job()
    schedule = TokenScheduler(resumed.optimizers, WarmupStableDecay(0, 0, 100), 1)
    resumed.manager.states["lr_scheduler"] = schedule
    expected = r"step-10 failed to load \(.*Missing key .*lr_scheduler.tokens_seen.*\)"
    with pytest.raises(CheckpointError, match=expected) as raised:
        resumed.manager.load()
    assert "\n" not in str(raised.value)


def test_only_partial_steps_stop_the_run(job, folder: Path):
    job().train(10)
    drop_metadata(folder / "step-10")
    with pytest.raises(CheckpointError, match=r"no step can be continued from: step-10 lacks"):
        job().manager.load()
    with pytest.raises(CheckpointError, match="step-10"):
        job(initial_load_path=str(folder)).manager.load()


def test_emptied_steps_stop_the_run(job, folder: Path):
    """They held something: to begin at random weights would lose it without a word."""
    job().train(20)
    for path in folder.glob("step-*/*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no step can be continued from: step-20 "):
        job().manager.load()


def test_a_run_that_was_cut_off_in_its_first_save_begins_as_at_first(
    job, folder: Path, tmp_path: Path, monkeypatch, caplog
):
    with monkeypatch.context() as cut_off:
        cut_off.setattr("titan_motif.components.sealing_writer.write_seal", lambda *given: None)
        first = job().train(10).everything()
    assert (folder / "step-10" / ".metadata").exists()
    begin_writing(folder / "step-20")
    assert [saved.is_unfinished for saved in saved_steps(folder)] == [True, True]
    again = job()
    assert again.manager.load() is False
    assert "step-20, step-10: the run was cut off in its first save, which held" in caplog.text
    assert again.train(10).everything() == first
    assert steps_in(folder) == [10]
    assert not (folder / "step-10" / ".unfinished").exists()
    again.train(30)
    (folder / "step-20").rename(tmp_path / "base")
    drop_metadata(folder / "step-30")  # a whole step that was damaged is something to be lost
    (folder / "step-10" / "seal.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-30 lacks its file \.metadata; step-10 has no"):
        job().manager.load()
    shutil.rmtree(folder)
    begin_writing(folder / "step-10")
    begun = job(initial_load_path=str(tmp_path / "base"))
    assert begun.manager.load() is True
    assert begun.state.step == 0


def test_an_empty_or_missing_folder_is_a_fresh_start(job, folder: Path):
    assert job().manager.load() is False
    folder.mkdir()
    (folder / "notes").mkdir()
    assert job().manager.load() is False


def test_other_names_are_no_steps(job, folder: Path):
    job().train(10)
    shutil.copytree(folder / "step-10", folder / "old-step-999.bak")
    shutil.copytree(folder / "step-10", folder / "step-20x")
    shutil.copytree(folder / "step-10", folder / "step-010")
    resumed = job()
    resumed.manager.load()
    assert resumed.manager.resumed_from == 10
    assert [saved.step for saved in saved_steps(folder)] == [10]


def test_a_renamed_step_is_not_taken_for_a_newer_one(job, folder: Path, caplog):
    """Whole to its last byte, it would lose the steps between."""
    newest = job().train(20).everything()
    (folder / "step-30").symlink_to(folder / "step-10")
    resumed = job()
    assert resumed.manager.load() is True
    assert (resumed.manager.resumed_from, resumed.everything()) == (20, newest)
    assert "checkpoint: step-30 holds step 10: it was renamed or copied; trying" in caplog.text
    with pytest.raises(CheckpointError, match=r"step-30: holds step 10: it was renamed or copied$"):
        job().manager.load(30)
    willing = job(exclude_from_loading=["train_state"])
    willing.manager.load(30)
    assert willing.manager.resumed_from == 30


def test_partial_steps_do_not_push_complete_ones_out(job, folder: Path):
    """The case of torchtitan 0.2.2: 10 and 20 complete, 30 and 40 partial, two to be kept."""
    job().train(20)
    for partial in (30, 40):
        shutil.copytree(folder / "step-20", folder / f"step-{partial}")
        drop_metadata(folder / f"step-{partial}")
    keeper = job(keep_latest_k=2)
    keeper.manager._purge_stale_checkpoints()
    keeper.manager.close()
    assert steps_in(folder) == [10, 20, 30, 40]


def test_the_last_k_complete_steps_are_kept(job, folder: Path):
    shutil.rmtree(folder, ignore_errors=True)
    keeper = job(keep_latest_k=2).train(30)
    (folder / "step-25").mkdir()  # a save that was killed
    keeper.train(40)
    keeper.manager.close()
    assert steps_in(folder) == [30, 40]
    assert not list(folder.glob(".deleting-*"))


def test_a_step_that_is_being_deleted_never_looks_whole(job, folder: Path):
    job().train(20)
    (folder / "step-10").rename(folder / ".deleting-step-10")
    assert [saved.step for saved in saved_steps(folder)] == [20]
    job()
    assert not (folder / ".deleting-step-10").exists()


def test_a_wanted_step_must_be_there(job, folder: Path):
    with pytest.raises(CheckpointError, match="step-10 does not exist; complete steps: none"):
        job().manager.load(10)
    saved = job().train(20)
    with pytest.raises(CheckpointError, match="step-15 does not exist; complete steps: 10, 20"):
        job().manager.load(15)
    shorten(folder / "step-20")
    with pytest.raises(CheckpointError, match=r"step-20 has \d+ bytes in __0_0.distcp"):
        job().manager.load(20)
    wanted = job()
    assert wanted.manager.load(10) is True
    assert wanted.state.step == 10
    assert saved.state.step == 20


def test_another_order_of_the_data_is_no_damage(job, folder: Path, caplog):
    job().train(20)
    job_two, beginning = job(), {"initial_load_path": str(folder / "step-20"), "folder": "new"}
    elsewhere = job(initial_load_model_only=False, **beginning)
    for other in (job_two, elsewhere):
        other.data.seed = 1
    for load in (job_two.manager.load, lambda: job_two.manager.load(10), elsewhere.manager.load):
        with pytest.raises(DifferentDataError) as raised:
            load()
        assert "step-10" in str(raised.value) or "step-20" in str(raised.value)
        assert "the seed is 1; the checkpoint's is 0. Set debug.seed" in str(raised.value)
        assert "\n" not in str(raised.value)
    assert "trying the step before it" not in caplog.text

    willing = job(exclude_from_loading=["dataloader"])  # the remedy that the message names
    willing.data.seed = 1
    assert willing.manager.load() is True
    assert (willing.state.step, willing.data.step) == (20, 0)


def test_a_step_of_the_model_alone_is_not_continued_from(job, folder: Path, caplog):
    older = job().train(10).everything()
    job_two = job(last_save_model_only=True)
    job_two.manager.load()
    job_two.train(15, is_end=True)
    assert seal_problem(folder / "step-15") is None
    resumed = job()
    resumed.manager.load()
    assert resumed.everything() == older
    assert "step-15 holds the model alone" in caplog.text


def test_beginning_from_another_runs_weights(job, folder: Path, tmp_path: Path):
    saved = job().train(10)
    step = str(folder / "step-10")
    begun = job(initial_load_path=step, folder="elsewhere")
    assert begun.manager.load() is True
    assert torch.equal(begun.model.weight, saved.model.weight)
    assert begun.state.step == 0
    # A run's checkpoint folder stands for its newest step that is whole.
    later = saved.train(20)
    weights = later.model.weight.clone()
    for newest in (weights, None):
        begun = job(initial_load_path=str(folder), folder="elsewhere")
        assert begun.manager.load() is True
        if newest is not None:
            assert torch.equal(begun.model.weight, newest)
            drop_metadata(folder / "step-20")
        else:
            assert not torch.equal(begun.model.weight, weights)
    with pytest.raises(CheckpointError, match="the checkpoint to begin from is no directory"):
        job(initial_load_path="/nowhere", folder="elsewhere").manager.load()
    (tmp_path / "elsewhere").mkdir()
    drop_metadata(folder / "step-10")
    with pytest.raises(
        CheckpointError, match=r"the checkpoint to begin from lacks its file \.metadata"
    ):
        job(initial_load_path=step, folder="elsewhere").manager.load()


def test_closing_waits_for_an_asynchronous_save(job, folder: Path):
    saved = job(async_mode="async").train(10)
    saved.manager.close()
    assert seal_problem(folder / "step-10") is None
    resumed = job()
    resumed.manager.load()
    assert resumed.everything() == saved.everything()


def test_a_failed_asynchronous_save_is_raised_with_its_step(job, folder: Path, monkeypatch):
    saved = job(async_mode="async").train(10)
    saved.manager._async_wait()

    class Failed:
        def result(self):
            raise OSError("no space left on device")

    saved.manager.save_future = Failed()
    with pytest.raises(CheckpointError, match="saving step 10 failed: OSError: no space left"):
        saved.train(20)


def test_saving_a_step_again_replaces_it(job, folder: Path):
    first = job().train(10)
    (folder / "step-10" / "stale.distcp").touch()
    first.state.step = 0
    again = first.train(10).everything()
    assert not (folder / "step-10" / "stale.distcp").exists()
    resumed = job()
    resumed.manager.load()
    assert resumed.everything() == again


def test_a_step_that_is_being_saved_is_not_removed(job, folder: Path):
    """It has no seal yet, and a newer step is there, of a run that had gone further."""
    job().train(40)
    keeper = job(keep_latest_k=2)
    (folder / "step-35").mkdir()
    keeper.manager._saving_step = 35
    keeper.manager._purge_stale_checkpoints()
    assert 35 in steps_in(folder)


def test_after_a_step_back_newer_steps_are_left_aside(job, folder: Path, caplog):
    job().train(50)
    back = job(keep_latest_k=3)
    back.manager.load(20)
    assert steps_in(folder) == [10, 20, 30, 40, 50]  # until it goes another way
    back.train(40)
    back.manager.close()
    assert steps_in(folder) == [20, 30, 40]
    assert {path.name for path in folder.glob("*.abandoned")} == {
        "step-40.abandoned",
        "step-50.abandoned",
    }
    assert any(
        "step-50, step-40 are of a run that had gone" in r.getMessage() for r in caplog.records
    )
    resumed = job()
    resumed.manager.load()
    assert resumed.manager.resumed_from == 40
