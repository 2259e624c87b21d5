"""The entry of a run: `torchrun -m titan_motif.train --job.config_file FILE [OVERRIDES]`.

A thin subclass of torchtitan's Trainer. torchtitan's own `main` reads the command line at import
and knows only its own configuration, so this module has its own.
"""

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchtitan
import torchtitan.train
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import FSDPModule
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.distributed import utils as dist_utils
from torchtitan.tools.logging import logger

from titan_motif import plugin  # noqa: F401  (registers the train spec)
from titan_motif.components.checkpoint import CheckpointError, CompleteStepCheckpointManager
from titan_motif.components.curriculum.loader import Batch, LoaderError, describe_step
from titan_motif.components.curriculum.schedule import Step
from titan_motif.components.float8 import precompute_scales
from titan_motif.components.foreign_files import printable
from titan_motif.components.moving_average import feed_back, passes_multiple
from titan_motif.components.step_gate import StepRefused
from titan_motif.components.stop_request import StopRequest, WaitEnded
from titan_motif.config import JobConfig
from titan_motif.config_loading import ConfigError, load_config
from titan_motif.evaluation.during_training import IntervalEvaluator
from titan_motif.run_control import EXIT_PREEMPTED, Preempted, RunControl
from titan_motif.run_log import NO_ROOM, start_logging
from titan_motif.run_records import write_start_records
from titan_motif.step_check import StepCheckOfRun
from titan_motif.summary import summarize

_clip_gradients = dist_utils.clip_grad_norm_


class MotifTrainer(torchtitan.train.Trainer):
    """torchtitan's Trainer with complete-step checkpoints, run records and a summary at the end."""

    def __init__(self, job_config: JobConfig, stop: StopRequest | None = None) -> None:
        with _torchtitan_with_our_checkpoints():
            super().__init__(job_config)
        self.control = RunControl(job_config, stop or StopRequest(), report)
        self.was_preempted = False
        if job_config.validation.enable:
            self.validator.before_batch = self._before_validation_batch
        # FSDP holds the precision policy on any number of ranks, one included: no autocast.
        self.maybe_enable_amp = contextlib.nullcontext()
        self.rank = torch.distributed.get_rank()
        self.is_first_rank = self.rank == 0
        self.batch_degree = self.parallel_dims.dp_replicate * self.parallel_dims.dp_shard
        self.tokens_seen = 0
        """Tokens of all ranks since the beginning of the run."""
        self.seq_len = job_config.training.seq_len
        self.done = 0, 0
        """Steps that are done, and those that were read for them."""
        self.num_micro_batches = 0
        """Of the step under way, begun."""
        self.num_read = 0
        """Micro-batches of it."""
        self.shape: tuple[int, int] | None = None
        """Tokens and rows of the micro-batches of the step under way."""
        self.has_new_shape = True
        """Whether it differs from the last step's: then blocks may compile."""
        self.has_fed_back = False
        """Whether the step under way began from an average: it is then not given up."""
        self.step_tokens = 0
        """Tokens of all ranks in the step under way."""
        self.z_losses: list[Tensor] = []
        """Of the micro-batches of the step under way, this rank's part."""
        self.phase: int | None = None
        self.metrics_processor.data_report = self._report_of_data
        if job_config.loss.z_loss > 0:
            self.metrics_processor.loss_report = self._report_of_z_loss
        self.gate = self.optimizers.gate
        self.step_check = StepCheckOfRun(
            self.gate, job_config.step_check, self.dataloader, self.checkpointer
        )
        self.checkpointer.before_save = self._check_before_save
        self.evaluator: IntervalEvaluator | None = None
        if job_config.evaluation.enable:
            self.evaluator = IntervalEvaluator(
                job_config, self.model_args, self.device, self.metrics_processor
            )
        if self.is_first_rank:
            environment = write_start_records(job_config, torch.distributed.get_world_size())
            told = ("world_size", "device_name", "git_commit", "versions")
            self.metrics_processor.start_record = {name: environment[name] for name in told}

    def batch_generator(self, data_iterable):
        """Take up the step that was loaded, if any, and return the batches from there."""
        # The first thing that happens after the checkpoint, if any, was loaded.
        self.first_step = self.step + 1
        self.done = self.step, self.dataloader.next_step
        self.control.begin()
        self._take_up_new_weights()
        self.metrics_processor.start(self.step)
        if self.step >= self.job_config.training.steps:
            logger.info(
                f"nothing left to train: {self.step} steps are done, and training.steps is "
                f"{self.job_config.training.steps}"
            )
        return self._count_without_filling(super().batch_generator(data_iterable))

    def _count_without_filling(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            self.control.enter(f"step {self.step}: reading data")
            batch = self._read(batches)
            if batch is None:  # on this rank alone, perhaps: no end that the others know of
                told = f"rank {self.rank} has no data for step {self.step}"
                raise LoaderError(told, is_alone=True)
            self.num_read += 1
            if self.num_read == self.gradient_accumulation_steps and not self.has_fed_back:
                self.control.edge(is_slow=False)
            self.control.enter(f"step {self.step}: has its data")
            inputs, labels = batch
            self.ntokens_seen -= int((labels == IGNORE_INDEX).sum())
            # Ranks have filling to different parts; what is told of the rate is one rank's.
            share = self.step_tokens / self.batch_degree / self.gradient_accumulation_steps
            self.metrics_processor.ntokens_since_last_log += share - labels.numel()
            yield inputs, labels

    def _read(self, batches: Iterator[Batch]) -> Batch | None:
        """Return the next micro-batch; if a signal comes first, meet the others at their edge."""
        # The first read of a start makes the loader's processes, which is not to be cut short.
        is_first = self.step == self.first_step and self.num_read == 0
        try:
            if self.has_fed_back or is_first:
                return next(batches)
            return self.control.stop.ending(lambda: next(batches))
        except WaitEnded:
            self.control.edge(is_slow=False)
            raise
        except DataloaderExhaustedError:
            return None

    def _edge(self) -> None:
        """End the run here, if it is to; not once its last step is saved as the model alone."""
        config = self.job_config
        if config.checkpoint.last_save_model_only and self.done[0] >= config.training.steps:
            return
        self.control.edge()

    def train_step(self, data_iterator) -> None:
        """Take the next step, if the run is not to end before it."""
        self._edge()
        self._evaluate(self.step - 1)
        self._feed_back_average()
        step = self._begin_data_step()
        self.step_tokens = step.tokens
        self.z_losses.clear()
        self.lr_schedulers.begin_step(step.tokens)
        self.optimizers.monitor.begin_step(self.step)
        self.step_check.begin(self.step)
        self.num_micro_batches = self.num_read = 0
        with mock.patch.object(dist_utils, "clip_grad_norm_", self._clip_gradients):
            super().train_step(data_iterator)
        self.tokens_seen += step.tokens
        if self.step == self.first_step:
            self._shorten_timeouts()
        self.done = self.step, self.dataloader.next_step
        self.control.enter(f"after step {self.step}: what is due", is_slow=True)

    def forward_backward_step(self, *, input_dict, labels, global_valid_tokens) -> Tensor:
        """Add a micro-batch's gradients; return its share of the step's cross entropy."""
        if self.num_micro_batches and not self.has_fed_back:
            self._edge()
        self.num_micro_batches += 1
        self.control.enter(
            f"step {self.step}: forward, backward, update", is_slow=self.has_new_shape
        )
        inputs, labels, extra_inputs, extra_kwargs = self.post_dataloading_process(
            input_dict, labels
        )
        (model,) = self.model_parts
        with self.train_context():
            # The loss comes out of the model: outside, the output projection's weight is sharded.
            loss = model(inputs, **extra_inputs, **extra_kwargs, labels=labels)
            (loss.total / global_valid_tokens).backward()
        self.gate.add_loss(loss.total / global_valid_tokens)
        self.z_losses.append(loss.z_loss / global_valid_tokens)
        return loss.cross_entropy / global_valid_tokens

    def _clip_gradients(self, *args: Any, **kwargs: Any) -> Tensor:
        self.gate.look_at_gradients(self.optimizers.numbers().gradients)
        norm = _clip_gradients(*args, **kwargs)
        self.gate.watch("gradient norm", norm)
        return norm

    def _check_before_save(self, step: int) -> None:
        self.gate.check_at_rest(self.optimizers.numbers(), f"saving step {step}")

    def _before_validation_batch(self) -> None:
        self.control.enter(f"validation after step {self.step}", is_slow=True)
        self._edge()

    def _evaluate(self, step: int) -> None:
        """Put the tasks of evaluation to what a step has left, once it is saved, if that is due."""
        if self.evaluator is None or not self.evaluator.is_due(step, step >= self.first_step):
            return
        self.optimizers.zero_grad()  # gradients make room for the whole model
        seconds = self.job_config.evaluation.timeout_seconds
        self.control.enter(f"evaluation after step {step}", seconds)
        self.evaluator.evaluate(self.model_parts[0], step)

    def _feed_back_average(self) -> None:
        """Before a step whose predecessor passed a multiple of the interval, take the average up.

        It follows from the tokens alone, so that a run that is resumed there does it too.
        """
        self.has_fed_back = False
        average, read = self.job_config.moving_average, self.dataloader.next_step
        if not average.enable or read == 0:
            return
        before = self.tokens_seen - self.dataloader.plan.step(read - 1).tokens
        if not passes_multiple(before, self.tokens_seen, average.interval_tokens):
            return
        (model,) = self.model_parts
        last, wanted = self.step - 1, average.num_checkpoints
        # Weights that are replaced would never be looked at.
        self.gate.check_at_rest(self.optimizers.numbers(), f"the moving average after step {last}")
        steps = feed_back(model, self.checkpointer, last, wanted)
        if steps is None:
            logger.info(f"moving average: fewer than {wanted} saved steps by step {last}: left out")
        else:
            logger.info(f"moving average: the weights are the mean of steps {steps} from here on")
            self._take_up_new_weights()
            self.has_fed_back = True

    def _take_up_new_weights(self) -> None:
        """Compute anew what was computed from weights that something but the optimizer replaced."""
        for model in self.model_parts:
            precompute_scales(model, self.job_config.quantize.linear.float8)

    def _report_of_z_loss(self) -> dict[str, float]:
        z_loss = torch.stack(self.z_losses).sum()
        mesh = self.parallel_dims.get_optional_mesh("loss")
        mean = z_loss.item() if mesh is None else dist_utils.dist_sum(z_loss, mesh)
        return {"loss_metrics/z_loss": mean}

    def _report_of_data(self, begin_step: int, end_step: int) -> dict[str, float]:
        # A run that reads its data from the beginning again has other numbers for its steps.
        read = self.dataloader.next_step
        return self.dataloader.report(max(read - (end_step - begin_step), 0), read)

    def _begin_data_step(self) -> Step:
        """Take up the length and the batch of the step that is due, the same on all ranks."""
        loader = self.dataloader
        if loader.next_step >= loader.plan.num_steps:
            raise LoaderError(f"the data end after {loader.plan.num_steps} steps of reading")
        step = loader.plan.step(loader.next_step)
        self.gradient_accumulation_steps = loader.share.micro_batches(step)
        shape = step.seq_len, loader.share.rows(step)
        self.has_new_shape, self.shape = shape != self.shape, shape
        if step.seq_len != self.seq_len:
            self.seq_len = step.seq_len
            _, flops = self.model_args.get_nparams_and_flops(self.model_parts[0], step.seq_len)
            self.metrics_processor.num_flops_per_token = flops
        if step.phase != self.phase:
            if self.phase is not None:
                logger.info(f"phase {describe_step(loader, loader.next_step)}")
            self.phase = step.phase
        return step

    def _shorten_timeouts(self) -> None:
        """Set the time-outs for what follows the first step, with its loading and compiling.

        torchtitan does so after step 1, which a resumed run never does, and for its meshes alone.
        """
        seconds = timedelta(seconds=self.job_config.comm.train_timeout_seconds)
        if self.step != 1:
            dist_utils.set_pg_timeouts(seconds, self.parallel_dims)
        for optimizer in self.optimizers:
            for group in getattr(optimizer, "exchange_groups", ()):
                torch.distributed.distributed_c10d._set_pg_timeout(seconds, group)

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the tokens seen by all ranks together."""
        return {"step": self.step, "ntokens_seen": self.tokens_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a run, whatever the number of ranks that saved it."""
        self.step = state_dict["step"]
        self.tokens_seen = state_dict["ntokens_seen"]
        # torchtitan counts a rank's own, and adds those of all ranks where it tells them.
        whole, rest = divmod(self.tokens_seen, self.batch_degree)
        self.ntokens_seen = whole + (self.dataloader.share.rank < rest)

    def train(self) -> None:
        """Train to the last step and summarise, or save and leave where a stop is asked for."""
        try:
            super().train()
            self.gate.check_at_rest(self.optimizers.numbers(), "what follows the last step")
            if self.checkpointer.enable:
                self.checkpointer.wait()
            self._edge()
            self._evaluate(self.step)
            if self.job_config.summary.enable:
                self.control.enter("summary", is_slow=True)
                summarize(self, self.tokens_seen)
        except Preempted as order:
            self._leave(order)

    def _leave(self, order: Preempted) -> None:
        """Save what is not saved yet; a step that was under way has not been."""
        done, num_read = self.done
        self.dataloader.take_back(num_read)
        self.step = done
        for module in self.model_parts[0].modules():
            if isinstance(module, FSDPModule):  # gathered by a pass that no backward one follows
                module.reshard()
        self.control.enter(f"{order.signal.name}: saving step {done}", is_slow=True)
        if done and not self.checkpointer.save_now(done):
            raise CheckpointError(
                f"{order.signal.name} came after step {done}, and nothing is saved: "
                "checkpoint.enable is false, or load_only true"
            )
        self.control.leave_mark(done, order.signal)
        self.was_preempted = True


@contextlib.contextmanager
def _torchtitan_with_our_checkpoints() -> Iterator[None]:
    """torchtitan's Trainer builds its checkpoint manager by name: give the name to ours."""
    with mock.patch.object(torchtitan.train, "CheckpointManager", CompleteStepCheckpointManager):
        yield


def build_trainer(config: JobConfig, stop: StopRequest | None = None) -> MotifTrainer:
    """Build the trainer; ConfigError if our own code refuses something by a ValueError.

    Such an error is a message to the user (a split without tokens, say). One from anywhere else is
    a crash, and keeps its traceback.
    """
    try:
        return MotifTrainer(config, stop)
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].startswith("titan_motif."):
            raise ConfigError(str(error)) from error
        raise


def report(
    error: Exception | str, silent: Sequence[int] = (), *, is_alone: bool | None = None
) -> None:
    """Print an error as one line, once on each machine: by its first rank that is not silent,
    or by the only one that knows of it.

    torchrun ends its own text with what is in this file, by then the stack that torchtitan's
    Trainer recorded: a line that says what to do is not to be looked for in there.
    """
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if is_alone is None:
        is_alone = getattr(error, "is_alone", False)
    if is_alone or set(range(rank - local_rank, rank)) <= set(silent):
        print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        message = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": message}))


def _close(trainer: MotifTrainer) -> None:
    """End the trainer's threads and processes; what is not written by then may find no room.

    A save that fails here was under way beside what ended the run, which has been told.
    """
    try:
        try:
            trainer.checkpointer.close()
        except CheckpointError as error:
            logger.warning(str(error))
        trainer.metrics_processor.close()
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        logger.warning(f"the last lines for TensorBoard are not written: {error.strerror}")
    finally:
        # They ignore signals, and Python would wait for one whose read hangs.
        for worker in multiprocessing.active_children():
            worker.kill()
        trainer.control.close()


@record  # torchrun then names the exception of a rank whose output is not shown
def main(argv: Sequence[str]) -> int:
    """Run a job and return the exit code: 0 done, 1 failed in the run, 2 a bad configuration.

    75: stopped by a signal, saved, and to be started again.
    """
    start_logging()
    if "LOCAL_RANK" not in os.environ:
        print("error: start it through ./run_train.sh or torchrun", file=sys.stderr)
        return 2
    stop = StopRequest()
    stop.install()
    trainer: MotifTrainer | None = None
    try:
        config = load_config(argv, int(os.environ["WORLD_SIZE"]))
        trainer = build_trainer(config, stop)
        if config.checkpoint.create_seed_checkpoint:
            trainer.checkpointer.save(curr_step=0, last_step=True)
        else:
            trainer.train()
    except (ConfigError, CheckpointError, LoaderError, StepRefused) as error:
        report(error)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or "the run's folder"
        report(f"{where}: {error.strerror}; with room again, it goes on", is_alone=True)
        return 1
    except RuntimeError as error:
        # torch tells of a worker's death by a signal handler, wherever the run is then.
        if trainer is None or not str(error).startswith("DataLoader worker"):
            raise
        report(trainer.dataloader.failure(error))
        return 1
    finally:
        if trainer is not None:
            _close(trainer)
    torch.distributed.destroy_process_group()
    return EXIT_PREEMPTED if trainer.was_preempted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
