"""What a run tells while it goes on: console lines, TensorBoard, metrics.jsonl."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import NoColor

from titan_motif.components.history import (
    HISTORY_FILE,
    STARTS_FILE,
    append_entry,
    forget_history_after,
)

_SHORT_NAMES = {
    "loss_metrics/global_avg_loss": "loss",
    "throughput/tokens_per_second": "tokens_per_second",
}
"""TensorBoard's names of figures that the history has under others; the rest are the same."""

# torchtitan takes the peak of an A100 for every device that it does not know.
_KNOWN_DEVICES = ("A100", "H100", "H200", "H20", "B200", "MI250X", "MI300X", "MI325X", "MI355X")


class RunMetrics(MetricsProcessor):
    """torchtitan's metrics, with a line a person can follow and a history that outlives the run.

    Tokens/s are those of all ranks together. MFU appears only on a device whose peak is known.
    """

    def __init__(
        self, job_config: JobConfig, parallel_dims: ParallelDims, tag: str | None = None
    ) -> None:
        super().__init__(job_config, parallel_dims, tag)
        if not sys.stdout.isatty():  # a file or a pipe wants no colour codes
            self.color = NoColor()
        name = self.device_memory_monitor.device_name
        self.has_known_peak = any(known in name for known in _KNOWN_DEVICES)
        self.history_path = Path(job_config.job.dump_folder) / HISTORY_FILE
        self.is_writer = torch.distributed.get_rank() == 0
        self.last_logged_step: int | None = None
        self.start_record: dict[str, Any] = {}
        """What is told of a start beside its step and time."""
        self.data_report: Callable[[int, int], dict[str, float]] | None = None
        """Tells of what was read between two counts of steps."""
        self.loss_report: Callable[[], dict[str, float]] | None = None
        """Tells of the loss of the step that is logged; it may reduce over ranks."""

    @property
    def optimizers(self) -> OptimizersContainer | None:
        """torchtitan hands them in; their monitor, if they have one, is told whom it reports to."""
        return self._optimizers

    @optimizers.setter
    def optimizers(self, container: OptimizersContainer | None) -> None:
        self._optimizers = container
        self.monitor = getattr(container, "monitor", None)
        if self.monitor is not None:
            self.monitor.report_to(self)

    def start(self, step: int) -> None:
        """Begin after `step` steps, which an earlier run may have done; what it did beyond goes.

        The start itself is kept, with the steps that it goes back: in starts.jsonl.
        """
        if self.is_writer:
            lost = forget_history_after(step, self.history_path)
            start = {"step": step, "time": time.time(), "lost_steps": lost, **self.start_record}
            append_entry(self.history_path.with_name(STARTS_FILE), start)
        self.last_logged_step = step
        self.time_last_log = time.perf_counter()

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """Write one line for the steps since the last one (losses in nats per token)."""
        seconds = time.perf_counter() - self.time_last_log
        num_steps = max(step - (self.last_logged_step or 0), 1)
        world = self.parallel_dims.world_size / self.parallel_dims.non_data_parallel_size
        tokens_per_second = self.ntokens_since_last_log * world / seconds
        memory = self.device_memory_monitor.get_peak_stats()
        flops_per_device = (
            self.num_flops_per_token * tokens_per_second / self.parallel_dims.world_size
        )
        extra = dict(extra_metrics or {})
        if self.monitor is not None:
            extra |= self.monitor.metrics()
        if self.loss_report is not None:
            extra |= self.loss_report()
        if self.data_report is not None and self.is_writer:
            extra |= self.data_report(self.last_logged_step or 0, step)
        gate = getattr(self.optimizers, "gate", None)
        if gate is not None:
            gate.settle()
        metrics = {
            "loss_metrics/global_avg_loss": global_avg_loss,
            "loss_metrics/global_max_loss": global_max_loss,
            "grad_norm": grad_norm,
            "throughput/tokens_per_second": tokens_per_second,
            "throughput/tflops_per_device": flops_per_device / 1e12,
            "time_metrics/step(s)": seconds / num_steps,
            "time_metrics/data_loading(s)": sum(self.data_loading_times) / num_steps,
            "time_metrics/data_loading(%)": 100 * sum(self.data_loading_times) / seconds,
            "memory/max_reserved(GiB)": memory.max_reserved_gib,
            "optimizer/skipped_steps": 0 if gate is None else gate.num_skipped,
            **extra,
        }
        mfu = ""
        if self.has_known_peak:
            metrics["throughput/mfu(%)"] = 100 * flops_per_device / self.gpu_peak_flops
            mfu = f"  mfu: {metrics['throughput/mfu(%)']:.1f}%"
        self.logger.log(metrics, step)
        named = {_SHORT_NAMES.get(name, name): value for name, value in metrics.items()}
        self._remember(step=step, **named)
        total, color = self.job_config.training.steps, self.color
        left = _clock((total - step) * seconds / num_steps)
        logger.info(
            f"{color.red}step: {step:>{len(str(total))}}/{total}  "
            f"{color.green}loss: {global_avg_loss:8.5f}  "
            f"{color.yellow}lr: {extra.get('lr', math.nan):.3e}  "
            f"{color.orange}grad_norm: {grad_norm:7.4f}  "
            f"{color.turquoise}memory: {memory.max_reserved_gib:5.2f}GiB  "
            f"{color.blue}tokens/s: {tokens_per_second:,.0f}{mfu}  "
            f"{color.cyan}left: {left}{color.reset}"
        )
        self._reset(step)

    def log_validation(
        self, loss: float, step: int, extra_metrics: dict[str, Any] | None = None
    ) -> None:
        """Write the validation loss (nats per token); its time does not count as training."""
        metrics = {"validation_metrics/loss": loss, **(extra_metrics or {})}
        self.logger.log(metrics, step)
        by_group = {
            name.removeprefix("validation_metrics/loss/"): value
            for name, value in (extra_metrics or {}).items()
        }
        parts = {f"validation_loss/{group}": value for group, value in by_group.items()}
        self._remember(step=step, validation_loss=loss, **parts)
        told = ", ".join(f"{group} {value:.5f}" for group, value in by_group.items())
        logger.info(
            f"{self.color.yellow}validation at step {step}: loss {loss:.5f}"
            f"{f' ({told})' if told else ''}{self.color.reset}"
        )

    def _reset(self, step: int) -> None:
        self.last_logged_step = step
        self.ntokens_since_last_log = 0
        self.data_loading_times.clear()
        self.time_last_log = time.perf_counter()
        self.device_memory_monitor.reset_peak_stats()

    def _remember(self, **entry: float | None) -> None:
        if self.is_writer:
            append_entry(self.history_path, {**entry, "time": time.time()})


def build_metrics(
    job_config: JobConfig, parallel_dims: ParallelDims, model_args: Any = None
) -> RunMetrics:
    """Build the metrics of a run, as torchtitan's TrainSpec wants it."""
    return RunMetrics(job_config, parallel_dims)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
