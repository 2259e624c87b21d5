"""One training configuration, measured step by step in the product's own trainer.

    python -m titan_motif.study.cell ROW.json --steps 10 --warmup 3 [--model llama3] -- OVERRIDES

OVERRIDES are those of a run (--section.field value), --job.config_file among them. Nothing is
saved, validated or logged; data, clipping, optimizer and what hangs on it are those of a run.
"""

import titan_motif.train  # noqa: F401  (before anything of torchtitan; registers the train spec)

# isort: split
import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchtitan.train
from torch import Tensor
from torch._dynamo.utils import calculate_time_spent, counters
from torchtitan.components.metrics import MetricsProcessor

from titan_motif.config_loading import ConfigError, load_config
from titan_motif.device import device_module, device_type
from titan_motif.run_log import start_logging
from titan_motif.run_records import describe_environment
from titan_motif.study.llama3 import build_peer
from titan_motif.study.runner import Row, split_at_job, write_row_of
from titan_motif.train import build_trainer

MODELS = ("motif2", "llama3", "llama3_widened")
"""Ours, torchtitan's Llama-3 of the same width, and the one of the same number of parameters."""
SILENT = (
    "--checkpoint.enable=false",
    "--moving_average.enable=false",
    "--validation.enable=false",
    "--summary.enable=false",
    "--metrics.enable_tensorboard=false",
    "--metrics.enable_wandb=false",
)
"""What would write or evaluate, switched off."""


class Watched:
    """A function whose calls are timed where the work is done: on the device, if there is one."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.marks: list[tuple[Any, Any]] = []
        self.results: list[Any] = []

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        begin = _mark()
        result = self.function(*arguments, **keywords)
        self.marks.append((begin, _mark()))
        self.results.append(result.detach() if isinstance(result, Tensor) else result)
        return result

    def take(self) -> tuple[float, list[Any]]:
        """Return the milliseconds and results of the calls since last time, which have ended."""
        milliseconds = sum(_ms_between(*marks) for marks in self.marks)
        results = self.results
        self.marks, self.results = [], []
        return milliseconds, results


def _mark() -> Any:
    if device_type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _ms_between(begin: Any, end: Any) -> float:
    return begin.elapsed_time(end) if device_type == "cuda" else 1000 * (end - begin)


def measure_cell(model: str, overrides: Sequence[str], num_steps: int, num_warmup: int) -> Row:
    """Return the figures of one configuration, or the line that refuses it."""
    with (
        tempfile.TemporaryDirectory(prefix="titan-motif-cell-") as folder,
        # Whether a step is logged decides what attention records, which is another graph.
        mock.patch.object(MetricsProcessor, "should_log", return_value=False),
    ):
        arguments = [*overrides, *SILENT, "--job.dump_folder", folder]
        try:
            config = load_config(arguments, world_size=1)
            if model == "motif2":
                trainer = build_trainer(config)
            else:
                trainer = build_peer(config, is_widened=model == "llama3_widened")
        except ConfigError as error:
            return {"error": str(error)}
        row = _measure_steps(trainer, num_steps, num_warmup)
        trainer.close()
    torch.distributed.destroy_process_group()
    return row


def _measure_steps(trainer: torchtitan.train.Trainer, num_steps: int, num_warmup: int) -> Row:
    passes = trainer.forward_backward_step = Watched(trainer.forward_backward_step)
    whole = trainer.optimizers.step = Watched(trainer.optimizers.step)
    updates = [Watched(optimizer.step) for optimizer in trainer.optimizers]
    for optimizer, update in zip(trainer.optimizers, updates, strict=True):
        optimizer.step = update
    batches = trainer.batch_generator(trainer.dataloader)
    num_graphs, losses, tokens = 0, [], 0
    step_ms, pass_ms, optimizer_ms, update_ms = [], [], [], []
    for index in range(num_warmup + num_steps):
        if index == num_warmup:
            num_graphs = _num_graphs()
            if device_type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        before = trainer.ntokens_seen
        device_module.synchronize()
        begin = time.perf_counter()
        trainer.step += 1
        trainer.gc_handler.run(trainer.step)
        trainer.train_step(batches)
        device_module.synchronize()
        step_ms.append(1000 * (time.perf_counter() - begin))
        milliseconds, parts = passes.take()
        pass_ms.append(milliseconds)
        optimizer_ms.append(whole.take()[0])
        update_ms.append(sum(update.take()[0] for update in updates))
        losses.append(torch.stack(parts).sum().item())
        tokens = trainer.ntokens_seen - before
    median = statistics.median(step_ms[num_warmup:])
    has_memory, environment = device_type == "cuda", describe_environment(world_size=1)
    return {
        **_throughput(trainer, tokens, median),
        "step_ms": median,
        "step_ms_min": min(step_ms[num_warmup:]),
        "step_ms_max": max(step_ms[num_warmup:]),
        "forward_backward_ms": statistics.median(pass_ms[num_warmup:]),
        "optimizer_ms": statistics.median(optimizer_ms[num_warmup:]),
        "update_ms": statistics.median(update_ms[num_warmup:]),  # without what hangs on the step
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if has_memory else None,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if has_memory else None,
        "compile_seconds": (step_ms[0] - median) / 1000,
        "dynamo_seconds": calculate_time_spent().get("total_wall_time", 0.0),
        "graph_breaks": sum(counters["graph_break"].values()),
        "graphs": num_graphs,
        "recompiles": _num_graphs() - num_graphs,
        "final_loss": losses[-1],
        "losses": losses,
        "warmup_steps": num_warmup,
        "steps": num_steps,
        "device": environment["device_name"],
        "versions": environment["versions"],
    }


def _throughput(trainer: torchtitan.train.Trainer, tokens: int, step_ms: float) -> Row:
    """Return what follows from a step's tokens and time; MFU is None where no peak is known."""
    metrics = trainer.metrics_processor
    seconds = step_ms / 1000
    flops = metrics.num_flops_per_token * tokens / seconds
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.model_parts[0].parameters()),
        "flops_per_token": metrics.num_flops_per_token,
        "tokens_per_step": tokens,
        "tokens_per_second": tokens / seconds,
        "tflops": flops / 1e12,
        "mfu": flops / metrics.gpu_peak_flops if metrics.has_known_peak else None,
    }


def _num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def main(argv: Sequence[str]) -> int:
    """Measure what a command line says, write its row, and return the exit code."""
    own, overrides = split_at_job(argv)
    parser = argparse.ArgumentParser(prog="python -m titan_motif.study.cell")
    parser.add_argument("row", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--model", choices=MODELS, default="motif2")
    options = parser.parse_args(own)
    start_logging()
    return write_row_of(
        options.row,
        lambda: measure_cell(options.model, overrides, options.steps, options.warmup),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
