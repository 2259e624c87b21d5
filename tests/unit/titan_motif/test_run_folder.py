"""Where a step's run is looked for."""

from pathlib import Path

from titan_motif.run_folder import RESOLVED_CONFIG, resolved_config_of


def test_a_steps_job_lies_two_folders_above_it(tmp_path: Path, monkeypatch):
    step = tmp_path / "run" / "checkpoint" / "step-5"
    step.mkdir(parents=True)
    assert resolved_config_of(step) is None
    job = tmp_path / "run" / RESOLVED_CONFIG
    job.write_text("")
    assert resolved_config_of(str(step)) == job
    monkeypatch.chdir(step)
    assert resolved_config_of(".") == job
    assert resolved_config_of(step.parent) is None
