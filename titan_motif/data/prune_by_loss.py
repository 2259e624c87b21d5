"""The rule of `titan-motif data prune` that asks a model: losses, their bounds, what goes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import numpy as np

from titan_motif.components.sft.conversations import Conversation
from titan_motif.components.sft.selection import Drop, Selection
from titan_motif.components.sft.template import Sample, TemplateProblem, load_template
from titan_motif.evaluation.conversation_loss import conversation_losses
from titan_motif.evaluation.loading import (
    check_vocabulary,
    dtype_named,
    load_model,
    newest_step,
    tokenizer_folder_of,
    usable_device,
)

_BATCH = 256
"""Conversations that are tokenised at once."""
_TOLD = {"p1": 0.01, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class LossBounds:
    """Where the loss of a row has to be; 0 is no bound, 0 and 1 are no quantiles."""

    min_loss: float
    max_loss: float
    min_quantile: float
    max_quantile: float

    def check(self) -> None:
        """Raise ValueError, one line, naming an option that is out of its range."""
        for name in ("min_loss", "max_loss"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {value}; 0 (off) or more is needed")
        if self.max_loss and self.min_loss >= self.max_loss:
            raise ValueError(
                f"--min-loss is {self.min_loss}; less than --max-loss, {self.max_loss}, is needed"
            )
        if not 0 <= self.min_quantile < self.max_quantile <= 1:
            raise ValueError(
                f"--min-loss-quantile is {self.min_quantile} and --max-loss-quantile "
                f"{self.max_quantile}; 0 to 1, the first less than the second, are needed"
            )

    def limits(self, losses: np.ndarray) -> tuple[float, float]:
        """Return the least and the most loss, given all of them."""
        least, most = self.min_loss, self.max_loss or math.inf
        if len(losses) and self.min_quantile > 0:
            least = max(least, float(np.quantile(losses, self.min_quantile)))
        if len(losses) and self.max_quantile < 1:
            most = min(most, float(np.quantile(losses, self.max_quantile)))
        return least, most


class LossJudge:
    """A model with its tokenizer and chat template.

    Raises: ValueError, one line, for what is wrong with one of them
    """

    def __init__(
        self,
        model: Path,
        tokenizer: Path | None,
        chat_template: str | Path,
        config: Path | None,
        device: str,
        dtype: str,
        batch_tokens: int,
    ) -> None:
        model = newest_step(model)
        folder = tokenizer_folder_of(model, tokenizer)
        self.name = str(model)
        self.template = load_template(folder, chat_template)
        place = usable_device(device)
        self.model = load_model(model, config, place, dtype_named(dtype, place))
        self.batch_tokens = min(batch_tokens, self.model.model_args.max_seq_len)
        num_entries = self.template.tokenizer.get_vocab_size()
        check_vocabulary(num_entries, folder, self.model.model_args)

    def losses(self, samples: Iterable[Sample]) -> Iterator[float | None]:
        """Yield the nats a learnt token of each sample, None where nothing is learnt."""
        return conversation_losses(self.model, samples, self.batch_tokens)


def drop_by_loss(
    selection: Selection,
    conversations: Iterable[tuple[int, Conversation]],
    judge: LossJudge,
    bounds: LossBounds,
) -> dict[str, Any]:
    """Drop the rows whose loss is out of bounds, and return what is to be told.

    Quantiles are those of the rows that come here. A row that the template refuses goes too; one
    that has nothing to learn within what the model reads at once stays.
    """
    numbers: list[int] = []
    unrendered: dict[int, str] = {}

    def samples() -> Iterator[Sample]:
        remaining = iter(conversations)
        while batch := list(islice(remaining, _BATCH)):
            encoded = judge.template.encode_all([conversation for _, conversation in batch])
            for (number, _), sample in zip(batch, encoded, strict=True):
                if isinstance(sample, TemplateProblem):
                    unrendered[number] = str(sample)
                else:
                    numbers.append(number)
                    yield sample

    losses = list(judge.losses(samples()))
    known = np.array([loss for loss in losses if loss is not None])
    least, most = bounds.limits(known)
    for number, problem in unrendered.items():
        selection.drops[number] = Drop("loss", f"no loss: {problem}")
    for number, loss in zip(numbers, losses, strict=True):
        if loss is None:
            continue
        if loss < least:
            detail = f"{loss:.4f} nats a token, under {least:.4f}"
        elif not loss <= most:
            detail = f"{loss:.4f} nats a token, over {most:.4f}"
        else:
            continue
        selection.drops[number] = Drop("loss", detail)
    shown = {name: float(np.quantile(known, share)) for name, share in _TOLD.items() if len(known)}
    return {
        "model": judge.name,
        "bounds": asdict(bounds),
        "limits": {"least": least, "most": None if math.isinf(most) else most},
        "rows": len(known),
        "unjudged": len(losses) - len(known),
        "nats": shown,
    }
