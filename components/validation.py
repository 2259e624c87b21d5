"""Validation loss on a fixed list of sequences, the same for any number of ranks."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.validate import BaseValidator
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.utils import TrainContext
from torchtitan.tools.utils import device_type

from titan_motif.components.curriculum.loader import Batch, DocumentInputs, collate
from titan_motif.components.curriculum.sources import TokenFile


class ValidationSequences:
    """The sequences of held-out splits in file order, dealt to the ranks in micro-batches.

    Every rank yields the same number of micro-batches, since a sharded model needs all ranks in
    each; what lies past the end is filled with labels that do not count. With `max_batches` -1 the
    ranks together see each sequence once; otherwise the first
    max_batches * dp_world_size * local_batch_size of them.

    Raises: ValueError if a split has no tokens, or is too short for one sequence
    """

    def __init__(
        self,
        folders: Sequence[Path],
        seq_len: int,
        local_batch_size: int,
        dp_rank: int,
        dp_world_size: int,
        max_batches: int = -1,
        documents: DocumentInputs | None = None,
    ) -> None:
        self.folders, self.seq_len, self.documents = folders, seq_len, documents
        # The last label of a sequence is the first input of the next one.
        self.files = [TokenFile(folder, at_least=seq_len + 1) for folder in folders]
        self.ends = np.cumsum(
            [(len(file) - (not file.is_packed)) // seq_len for file in self.files]
        )
        self.num_sequences = int(self.ends[-1])
        self.local_batch_size, self.dp_rank, self.dp_world_size = (
            local_batch_size,
            dp_rank,
            dp_world_size,
        )
        needed = -(-self.num_sequences // (local_batch_size * dp_world_size))
        self.num_batches = needed if max_batches == -1 else min(needed, max_batches)

    def __len__(self) -> int:
        return self.num_batches

    def of_all_ranks(self) -> "ValidationSequences":
        """Return what all ranks see together, as one rank's."""
        return ValidationSequences(
            self.folders,
            self.seq_len,
            self.local_batch_size,
            dp_rank=0,
            dp_world_size=1,
            max_batches=self.num_batches * self.dp_world_size,
        )

    def __iter__(self) -> Iterator[Batch]:
        for k in range(self.num_batches):
            first = (k * self.dp_world_size + self.dp_rank) * self.local_batch_size
            rows = [self._row(n) for n in range(first, first + self.local_batch_size)]
            yield collate(rows, self.documents)

    def _row(self, n: int) -> tuple[torch.Tensor, ...]:
        if n >= self.num_sequences:
            nothing = torch.zeros(self.seq_len, dtype=torch.int64)
            documents = [nothing] if self.files[0].is_packed else []
            return nothing, torch.full_like(nothing, IGNORE_INDEX), *documents
        number = int(np.searchsorted(self.ends, n, side="right"))
        begin = (n - (int(self.ends[number - 1]) if number else 0)) * self.seq_len
        file, end = self.files[number], begin + self.seq_len
        if file.is_packed:
            documents = file.documents_at(begin, self.seq_len)
            rows = file.tokens[begin:end], file.labels[begin:end], documents
        else:
            rows = file.tokens[begin:end], file.tokens[begin + 1 : end + 1]
        return tuple(torch.from_numpy(row.astype(np.int64)) for row in rows)


class SplitValidator(BaseValidator):
    """Evaluate the held-out splits every `validation.freq` steps, and at the last one.

    Each group of sources has a loss of its own; the validation loss is that of all their tokens.
    `validation.steps` is shared out by the groups' sequences, at least one micro-batch for each.

    Args:
        groups: the folders of each group's held-out splits
    """

    def __init__(
        self,
        job_config: JobConfig,
        groups: Mapping[str, Sequence[Path]],
        dp_world_size: int,
        dp_rank: int,
        parallel_dims: ParallelDims,
        metrics_processor: MetricsProcessor,
        validation_context: TrainContext,
        documents: DocumentInputs | None = None,
    ) -> None:
        super().__init__(job_config)
        self.groups = validation_groups(job_config, groups, dp_rank, dp_world_size, documents)
        self.parallel_dims = parallel_dims
        self.metrics_processor, self.validation_context = metrics_processor, validation_context
        self.before_batch: Callable[[], None] = lambda: None
        """Called by all ranks alike; it may end the run."""
        self.last_step: int | None = None
        self.last_loss: float | None = None
        self.last_losses: dict[str, float] = {}

    def should_validate(self, step: int) -> bool:
        """Return whether one is due: every `validation.freq` steps, and at the last."""
        return step % self.job_config.validation.freq == 0 or step == self.job_config.training.steps

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Measure, report, and remember the losses as `last_loss` and `last_losses` by group."""
        begin = time.perf_counter()
        self.last_step = step
        self.last_loss, self.last_losses = self.evaluate(model_parts[0])
        by_group = {f"validation_metrics/loss/{g}": loss for g, loss in self.last_losses.items()}
        self.metrics_processor.log_validation(
            self.last_loss, step, by_group if len(by_group) > 1 else None
        )
        # What is reported of training does not count this time.
        self.metrics_processor.time_last_log += time.perf_counter() - begin

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> tuple[float, dict[str, float]]:
        """Return the mean loss over all ranks' tokens (nats), of all and by group.

        All ranks have to call it.
        """
        was_training = model.training
        model.eval()
        # float64, since thousands of sums of batches meet here
        totals = torch.zeros(len(self.groups), 2, dtype=torch.float64, device=device_type)
        for total, sequences in zip(totals, self.groups.values(), strict=True):
            for inputs, labels in sequences:
                self.before_batch()
                labels = labels.to(device_type)
                inputs = {name: tensor.to(device_type) for name, tensor in inputs.items()}
                with self.validation_context():
                    loss = model(inputs.pop("input"), **inputs, labels=labels).cross_entropy
                total += torch.stack((loss.double(), (labels != IGNORE_INDEX).sum().double()))
        model.train(was_training)
        mesh = self.parallel_dims.get_optional_mesh("loss")
        if mesh is not None:
            torch.distributed.all_reduce(totals, group=mesh.get_group())
        losses = (totals[:, 0] / totals[:, 1]).tolist()
        whole = totals.sum(0)
        return (whole[0] / whole[1]).item(), dict(zip(self.groups, losses, strict=True))


def validation_groups(
    job_config: JobConfig,
    groups: Mapping[str, Sequence[Path]],
    dp_rank: int,
    dp_world_size: int,
    documents: DocumentInputs | None = None,
) -> dict[str, ValidationSequences]:
    """Return what a rank evaluates of each group."""
    validation = job_config.validation

    def sequences(folders: Sequence[Path], max_batches: int = -1) -> ValidationSequences:
        sizes = validation.seq_len, validation.local_batch_size
        return ValidationSequences(folders, *sizes, dp_rank, dp_world_size, max_batches, documents)

    whole = {group: sequences(folders) for group, folders in groups.items()}
    if validation.steps == -1:
        return whole
    total = sum(part.num_sequences for part in whole.values())
    return {
        group: sequences(
            groups[group], max(round(validation.steps * part.num_sequences / total), 1)
        )
        for group, part in whole.items()
    }


def build_validator(
    job_config: JobConfig,
    groups: Mapping[str, Sequence[Path]],
    dp_world_size: int,
    dp_rank: int,
    parallel_dims: ParallelDims,
    metrics_processor: MetricsProcessor,
    validation_context: TrainContext,
    documents: DocumentInputs | None = None,
    **unused: Any,
) -> SplitValidator:
    """Build the validator, as torchtitan's TrainSpec wants it once the groups are given."""
    return SplitValidator(
        job_config,
        groups,
        dp_world_size,
        dp_rank,
        parallel_dims,
        metrics_processor,
        validation_context,
        documents,
    )
