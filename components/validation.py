"""Validation loss on a fixed list of sequences, the same for any number of ranks."""

import time
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import IGNORE_INDEX, LossFunction
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.validate import BaseValidator
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.utils import TrainContext
from torchtitan.tools.utils import device_type

from titan_motif.components.curriculum.loader import DocumentInputs, ValidationSequences


class SplitValidator(BaseValidator):
    """Evaluate the held-out split every `validation.freq` steps, and at the last one."""

    def __init__(
        self,
        job_config: JobConfig,
        dp_world_size: int,
        dp_rank: int,
        parallel_dims: ParallelDims,
        loss_fn: LossFunction,
        metrics_processor: MetricsProcessor,
        validation_context: TrainContext,
        documents: DocumentInputs | None = None,
    ) -> None:
        super().__init__(job_config)
        validation = job_config.validation
        self.sequences = ValidationSequences(
            f"{job_config.training.dataset_path}/validation",
            seq_len=validation.seq_len,
            local_batch_size=validation.local_batch_size,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
            max_batches=validation.steps,
            documents=documents,
        )
        self.parallel_dims, self.loss_fn = parallel_dims, loss_fn
        self.metrics_processor, self.validation_context = metrics_processor, validation_context
        self.last_step: int | None = None
        self.last_loss: float | None = None

    def should_validate(self, step: int) -> bool:
        return step % self.job_config.validation.freq == 0 or step == self.job_config.training.steps

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Measure, report, and remember the loss as `last_loss` (nats per token)."""
        begin = time.perf_counter()
        self.last_step, self.last_loss = step, self.evaluate(model_parts[0])
        self.metrics_processor.log_validation(self.last_loss, step)
        # What is reported of training does not count this time.
        self.metrics_processor.time_last_log += time.perf_counter() - begin

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        """Return the mean loss over all ranks' tokens; all ranks have to call it."""
        was_training = model.training
        model.eval()
        # float64, since thousands of sums of batches meet here
        totals = torch.zeros(2, dtype=torch.float64, device=device_type)
        for inputs, labels in self.sequences:
            labels = labels.to(device_type)
            inputs = {name: tensor.to(device_type) for name, tensor in inputs.items()}
            with self.validation_context():
                loss = self.loss_fn(model(inputs.pop("input"), **inputs), labels)
            if isinstance(loss, DTensor):  # of tensor-parallel ranks, which all hold the same
                loss = loss.full_tensor()
            totals += torch.stack((loss.double(), (labels != IGNORE_INDEX).sum().double()))
        model.train(was_training)
        mesh = self.parallel_dims.get_optional_mesh("loss")
        if mesh is not None:
            torch.distributed.all_reduce(totals, group=mesh.get_group())
        return (totals[0] / totals[1]).item()


def build_validator(
    job_config: JobConfig,
    dp_world_size: int,
    dp_rank: int,
    parallel_dims: ParallelDims,
    loss_fn: LossFunction,
    metrics_processor: MetricsProcessor,
    validation_context: TrainContext,
    documents: DocumentInputs | None = None,
    **unused: Any,
) -> SplitValidator:
    """Build the validator, as torchtitan's TrainSpec wants it."""
    return SplitValidator(
        job_config,
        dp_world_size,
        dp_rank,
        parallel_dims,
        loss_fn,
        metrics_processor,
        validation_context,
        documents,
    )
