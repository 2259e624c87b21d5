"""Seals: no damage is loaded, what changed is named, what others wrote can be sealed."""

import json
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import titan_motif.device  # noqa: F401

# isort: split

from saved_jobs import (
    drop_metadata,
    drop_seal,
    edit_seal,
    flip_a_bit,
    remove_shard,
    scramble,
    scramble_metadata,
    shorten,
    steps_in,
)

from titan_motif import cli
from titan_motif.components.checkpoint import (
    CheckpointError,
)

DAMAGES = [
    drop_metadata,
    shorten,
    remove_shard,
    scramble,
    flip_a_bit,
    scramble_metadata,
    drop_seal,
    edit_seal,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_newest_step_is_named_and_passed_over(job, folder: Path, caplog, damage):
    older = job().train(10).everything()
    job_two = job()
    job_two.manager.load()
    job_two.train(20)
    damage(folder / "step-20")
    resumed = job()
    assert resumed.manager.load() is True
    assert resumed.everything() == older
    assert resumed.manager.resumed_from == 10
    warnings = [record.getMessage() for record in caplog.records]
    (warning,) = [line for line in warnings if line.startswith("checkpoint: step-20 ")]
    assert "\n" not in warning


def mutate(step: Path, generator: random.Random) -> str:
    """Damage a saved step in one of the ways that disks and people do; return what was done."""
    names = sorted(path.name for path in step.iterdir())
    path = step / generator.choice(names)
    content = bytearray(path.read_bytes())
    kind = generator.choice(["flip", "flip", "flip", "truncate", "remove", "swap", "zero", "grow"])
    if kind == "flip":
        place = generator.randrange(len(content))
        content[place] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
    elif kind == "truncate":
        path.write_bytes(content[: generator.randrange(len(content))])
    elif kind == "remove":
        path.unlink()
    elif kind == "swap":
        other = step / generator.choice([name for name in names if name != path.name])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "zero":
        begin = generator.randrange(len(content))
        content[begin : begin + 64] = bytes(len(content[begin : begin + 64]))
        path.write_bytes(content)
    else:
        path.write_bytes(content + bytes(generator.randrange(1, 9)))
    return f"{kind} {path.name}"


def test_of_300_damages_none_is_loaded_and_the_step_before_always_is(job, folder: Path, tmp_path):
    older = job().train(10).everything()
    newer = job()
    newer.manager.load()
    newer = newer.train(20).everything()
    whole = tmp_path / "whole"
    shutil.copytree(folder / "step-20", whole)
    contents = {path.name: path.read_bytes() for path in whole.iterdir()}
    generator, resumed = random.Random(0), job()
    num_unchanged = 0
    for _ in range(300):
        shutil.rmtree(folder / "step-20")
        shutil.copytree(whole, folder / "step-20")
        done = mutate(folder / "step-20", generator)
        found = {path.name: path.read_bytes() for path in (folder / "step-20").iterdir()}
        is_whole = found == contents  # zeros over zeros
        num_unchanged += is_whole
        assert resumed.manager.load() is True, done
        assert resumed.manager.resumed_from == (20 if is_whole else 10), done
        assert resumed.everything() == (newer if is_whole else older), done
    assert num_unchanged < 30


def test_the_first_tensor_that_changed_is_named(job, folder: Path):
    job().train(10)
    seal = json.loads((folder / "step-10" / "seal.json").read_text())
    shard = folder / "step-10" / "__0_0.distcp"
    for name, begin, end, _ in seal["files"]["__0_0.distcp"]["parts"]:
        content = bytearray(shard.read_bytes())
        content[(begin + end) // 2] ^= 1
        shard.write_bytes(content)
        told = rf"step-10: has changed in __0_0.distcp since it was saved, at {re.escape(name)}$"
        with pytest.raises(CheckpointError, match=told):
            job().manager.load(10)
        content[(begin + end) // 2] ^= 1
        shard.write_bytes(content)
    assert job().manager.load(10) is True


def test_a_disk_without_room_is_told_before_anything_is_written(job, folder: Path, monkeypatch):
    writer = job().train(10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=40))
    # Weight, bias, and AdamW's two moments and step of each: 3 + 2 * 3 + 2 numbers.
    with pytest.raises(CheckpointError, match=r"^saving step 20: 0.00 GB are needed, and .* has 0"):
        writer.train(20)
    assert steps_in(folder) == [10]


def test_a_step_of_another_program_counts_once_it_is_sealed(job, folder: Path, capsys):
    saved = job().train(10)
    step = folder / "step-10"
    sealed = (step / "seal.json").read_text()
    drop_seal(step)
    told = rf"begin from has no seal.json: .*; `titan-motif seal {step}` seals one that is known to"
    with pytest.raises(CheckpointError, match=told):
        job(initial_load_path=str(step), folder="elsewhere").manager.load()
    assert cli.main(["seal", str(step)]) == 0
    assert (step / "seal.json").read_text() == sealed
    begun = job(initial_load_path=str(step), folder="elsewhere")
    assert begun.manager.load() is True
    assert torch.equal(begun.model.weight, saved.model.weight)
    capsys.readouterr()
    assert cli.main(["seal", str(step)]) == 0
    assert capsys.readouterr().out == f"{step}: sealed already, and whole\n"
    flip_a_bit(step)
    assert cli.main(["seal", str(step)]) == 1
    assert "has changed in __0_0.distcp since it was saved, at " in capsys.readouterr().err
    drop_seal(step)
    shorten(step)
    assert cli.main(["seal", str(step)]) == 1
    assert "bytes; its .metadata needs" in capsys.readouterr().err
    assert not (step / "seal.json").exists()
