"""A number of a run that is made NaN or infinite, and what its step then changes."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import torch
from torch import Tensor

from titan_motif.components.loss import Loss
from titan_motif.components.muon.layout import local
from titan_motif.train import MotifTrainer

Place = Literal["loss", "gradient", "norm", "logits", "parameter", "state", "update"]


class Spoil(NamedTuple):
    """Which number, when, and on which rank alone."""

    place: Place
    """norm: all gradients of the rank become so large that their norm is infinite; update: the
    step makes the number of finite ones."""
    value: float
    step: int
    rank: int


class Watched(NamedTuple):
    """What became of the spoiled step on a rank."""

    is_refused: bool
    is_unchanged: bool
    """Whether parameters and state have the same bytes after it as before."""


def spoil_run(trainer: MotifTrainer, spoil: Spoil, tell: Callable[[Watched], Any]) -> None:
    """Let a step of a run be spoiled, and tell of it once it has been done."""
    is_here = torch.distributed.get_rank() == spoil.rank
    step, clip = trainer.optimizers.step, trainer._clip_gradients
    (model,) = trainer.model_parts

    def is_due() -> bool:
        return trainer.step == spoil.step

    def stepping(*args: Any) -> None:
        if not is_due():
            return step(*args)
        if is_here:
            _spoil_before_update(trainer, spoil)
        before = _hash(trainer)
        step(*args)
        if is_here and spoil.place == "update":
            spoil_weights_now()
        tell(Watched(bool(trainer.gate.refused), _hash(trainer) == before))
        return None

    @torch.no_grad()
    def clipping(*args: Any, **kwargs: Any) -> Tensor:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if is_here and is_due() and spoil.place == "norm":
            torch._foreach_mul_(gradients, 1e30)
        if is_here and is_due() and spoil.place == "gradient":
            _some(gradients[::-1])[0] = spoil.value
        return clip(*args, **kwargs)

    def spoil_loss(module: Any, given: Any, loss: Loss) -> Loss:
        if is_here and is_due() and model.training and spoil.place == "loss":
            return loss._replace(total=loss.total + spoil.value)  # whose gradient stays finite
        return loss

    @torch.no_grad()
    def spoil_weights_now() -> None:
        _some(list(model.parameters()))[0] = spoil.value

    def spoil_weights(*unused: Any) -> None:
        if is_here and is_due() and spoil.place == "parameter":
            spoil_weights_now()

    trainer.optimizers.step = stepping
    trainer._clip_gradients = clipping
    model.register_forward_pre_hook(spoil_weights)
    model.register_forward_hook(spoil_loss)


@torch.no_grad()
def _spoil_before_update(trainer: MotifTrainer, spoil: Spoil) -> None:
    (optimizer,) = trainer.optimizers
    if spoil.place == "state":
        states = [value for state in optimizer.state.values() for value in state.values()]
        _some([value for value in states if value.ndim])[0] = spoil.value
    elif spoil.place == "logits":
        assert trainer.optimizers.monitor.record.is_recording
        trainer.optimizers.monitor.record.maxima[0, 0] = spoil.value


@torch.no_grad()
def _some(tensors: list[Tensor]) -> Tensor:
    """Return, flat, this rank's part of the first tensor of which it has any."""
    return next(part for part in map(local, tensors) if part.numel()).view(-1)


@torch.no_grad()
def _hash(trainer: MotifTrainer) -> str:
    """Return a hash of this rank's parameters and state, NaNs included."""
    numbers = trainer.optimizers.numbers()
    found = sha256()
    for tensor in (*numbers.parameters, *(t for state in numbers.states for t in state)):
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
