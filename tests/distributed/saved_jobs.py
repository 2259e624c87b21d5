"""Small jobs that save their steps, and damages to these."""

from pathlib import Path

import torch

import titan_motif.device  # noqa: F401

# isort: split
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config.job_config import Checkpoint, LRScheduler

from titan_motif.components.checkpoint import (
    CompleteStepCheckpointManager,
)


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


def steps_in(folder: Path) -> list[int]:
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


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
