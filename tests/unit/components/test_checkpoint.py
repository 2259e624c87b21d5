"""Checkpoints: only complete steps count, for continuing and for keeping the last k."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import titan_motif.device  # noqa: F401

# isort: split
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config.job_config import Checkpoint, LRScheduler

from titan_motif import cli
from titan_motif.components.checkpoint import (
    CheckpointError,
    CompleteStepCheckpointManager,
    DifferentDataError,
)
from titan_motif.components.lr_schedule import TokenScheduler, WarmupStableDecay
from titan_motif.components.moving_average import feed_back, passes_multiple
from titan_motif.components.saved_steps import saved_steps
from titan_motif.components.seal import seal_problem


class TrainState:
    step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


class Data(TrainState):
    """Stands for the loader: a position that is a number, in an order that another one sets."""

    seed = 0

    def state_dict(self):
        return {"step": self.step, "seed": self.seed}

    def load_state_dict(self, state):
        if state["seed"] != self.seed:
            raise ValueError(f"the seed is {self.seed}; the checkpoint's is {state['seed']}")
        super().load_state_dict(state)


class Job:
    """A model of two weights with all that a manager saves; `train` makes every step different."""

    def __init__(self, base_folder: Path, **settings):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(2, 1)
        self.optimizers = OptimizersContainer([self.model], torch.optim.AdamW, {"lr": 0.1})
        self.schedulers = build_lr_schedulers(self.optimizers, LRScheduler(warmup_steps=50), 100)
        self.state, self.data = TrainState(), Data()
        defaults = {
            "enable": True,
            "interval": 10,
            "keep_latest_k": 0,
            "last_save_model_only": False,
        }
        self.manager = CompleteStepCheckpointManager(
            dataloader=self.data,
            model_parts=[self.model],
            optimizers=self.optimizers,
            lr_schedulers=self.schedulers,
            states={"train_state": self.state},
            checkpoint_config=Checkpoint(**(defaults | settings)),
            sd_adapter=None,
            base_folder=str(base_folder),
        )

    def train(self, last: int, is_end: bool = False) -> "Job":
        while self.state.step < last:
            self.state.step += 1
            self.data.step = 100 * self.state.step
            self.model(torch.tensor([[1.0, self.state.step]])).sum().backward()
            self.optimizers.step()
            self.optimizers.zero_grad()
            self.schedulers.step()
            self.manager.save(self.state.step, last_step=is_end and self.state.step == last)
        return self

    def everything(self) -> list:
        (optimizer,) = self.optimizers.optimizers
        moments = [tensor for s in optimizer.state.values() for tensor in s.values()]
        tensors = [*self.model.parameters(), *moments]
        return [
            *(tensor.detach().clone().tolist() for tensor in tensors),
            optimizer.param_groups[0]["lr"],
            self.schedulers.schedulers[0].last_epoch,
            self.state.step,
            self.data.step,
        ]


@pytest.fixture
def job(tmp_path: Path):
    """Make jobs on one folder inside a process group of one rank."""
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    made: list[Job] = []

    def make(**settings) -> Job:
        made.append(Job(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.manager.close()
    dist.destroy_process_group()


def steps_in(folder: Path) -> list[int]:
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


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


def drop_metadata(step: Path):
    (step / ".metadata").unlink()


def shorten(step: Path):
    shard = step / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-100])


def remove_shard(step: Path):
    (step / "__0_0.distcp").unlink()


def scramble(step: Path):
    shard = step / "__0_0.distcp"
    shard.write_bytes(bytes(len(shard.read_bytes())))


def flip_a_bit(step: Path):
    shard = step / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)


def drop_seal(step: Path):
    (step / "seal.json").unlink()


def edit_seal(step: Path):
    seal = step / "seal.json"
    seal.write_text(seal.read_text().replace('"bytes": ', '"bytes": 1', 1))


def scramble_metadata(step: Path):
    (step / ".metadata").write_bytes(b"not a pickle")


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


def test_only_partial_steps_stop_the_run(job, folder: Path):
    job().train(10)
    drop_metadata(folder / "step-10")
    with pytest.raises(CheckpointError, match=r"no step can be continued from: step-10 lacks"):
        job().manager.load()
    with pytest.raises(CheckpointError, match="step-10"):
        job(initial_load_path=str(folder)).manager.load()


def test_an_empty_or_missing_folder_is_a_fresh_start(job, folder: Path):
    assert job().manager.load() is False
    folder.mkdir()
    (folder / "notes").mkdir()
    assert job().manager.load() is False


def test_other_names_are_no_steps(job, folder: Path):
    job().train(10)
    shutil.copytree(folder / "step-10", folder / "old-step-999.bak")
    shutil.copytree(folder / "step-10", folder / "step-20x")
    resumed = job()
    resumed.manager.load()
    assert resumed.manager.resumed_from == 10
    assert [saved.step for saved in saved_steps(folder)] == [10]


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


def test_the_mean_of_the_last_steps_is_fed_back(job, folder: Path):
    writer, seen = job(), {}
    for step in (10, 20, 30):
        writer.train(step)
        seen[step] = writer.model.weight.detach().clone()
    writer.train(35)
    before = writer.model.weight.detach().clone()
    assert feed_back(writer.model, writer.manager, 30, 4) is None
    assert torch.equal(writer.model.weight, before)
    assert feed_back(writer.model, writer.manager, 29, 2) == [20, 10]
    assert torch.allclose(writer.model.weight, (seen[20] + seen[10]) / 2, rtol=1e-6)
    assert feed_back(writer.model, writer.manager, 30, 3) == [30, 20, 10]
    assert torch.allclose(writer.model.weight, sum(seen.values()) / 3, rtol=1e-6)
    flip_a_bit(folder / "step-20")
    assert feed_back(writer.model, writer.manager, 30, 3) is None
    assert feed_back(writer.model, writer.manager, 30, 2) == [30, 10]


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


def test_multiples_are_passed_once():
    passed = [passes_multiple(n, n + 3, 10) for n in range(0, 30, 3)]
    assert passed == [False, False, False, True, False, False, True, False, False, True]
