"""The summary at a run's end: its losses beside simple baselines, a few samples, and a picture."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import numpy as np
import torch
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.tools.logging import logger
from torchtitan.train import Trainer

from titan_motif.components.history import average_tokens_per_second, read_history
from titan_motif.config import JobConfig
from titan_motif.device import device_type
from titan_motif.evaluation.bigram import MAX_TRAIN_TOKENS, bigram_loss, excerpt
from titan_motif.evaluation.sharded_sampling import sample
from titan_motif.run_folder import ENVIRONMENT, EVALUATIONS, LOSS_CURVE, RESOLVED_CONFIG, SUMMARY

SAMPLE_PROMPTS = ("The function returns", "def __init__(self", "Question: ")


@torch.no_grad()
def summarize(trainer: Trainer, tokens_seen: int) -> None:
    """Write and print the summary of the run; all ranks have to call it.

    Args: tokens_seen: by all ranks since the beginning of the run
    """
    config = trainer.job_config
    validation_loss = None
    if config.validation.enable:
        if trainer.validator.last_step != trainer.step:
            trainer.validator.validate(trainer.model_parts, trainer.step)
        validation_loss = trainer.validator.last_loss
    samples = _samples(trainer)
    if torch.distributed.get_rank() != 0:
        return
    losses = [entry for entry in read_history(config.job.dump_folder) if "loss" in entry]
    summary = {
        "step": trainer.step,
        "tokens_seen": tokens_seen,
        "train_loss": _mean_of_the_last_tenth(losses),
        "validation_loss": validation_loss,
        "validation_losses": trainer.validator.last_losses if config.validation.enable else {},
        "bits_per_byte": None,
        "bigram_validation_loss": None,
        "bigram_train_tokens": None,
        "tokens_per_second": average_tokens_per_second(losses),
    }
    if validation_loss is not None:
        summary.update(_baselines(trainer, validation_loss))
    write_summary(config, summary, samples)


def _baselines(trainer: Trainer, validation_loss: float) -> dict[str, float]:
    """Judge the same validation tokens by their bytes, and under a bigram model."""
    config = trainer.job_config
    batches = [batch for part in trainer.validator.groups.values() for batch in part.of_all_ranks()]
    previous = np.concatenate([inputs["input"].numpy().ravel() for inputs, _ in batches])
    following = np.concatenate([labels.numpy().ravel() for _, labels in batches])
    judged = following != IGNORE_INDEX
    previous, following = previous[judged], following[judged]
    sources = [stream.file.tokens for stream in trainer.dataloader.streams]
    total = sum(map(len, sources))
    counted = min(total, MAX_TRAIN_TOKENS)
    train = np.concatenate([excerpt(x, counted * len(x) // total) for x in sources])
    baselines = {
        "bigram_validation_loss": bigram_loss(
            train, previous, following, trainer.model_args.vocab_size
        ),
        "bigram_train_tokens": counted,
    }
    table = Path(config.model.hf_assets_path) / "token_bytes.npy"
    if table.is_file():
        token_bytes = np.load(table, allow_pickle=False)
        baselines["bits_per_byte"] = bits_per_byte(validation_loss, following, token_bytes)
    return baselines


def _samples(trainer: Trainer) -> list[str]:
    """Continue three prompts; every rank takes part, since the model is sharded."""
    num_tokens = trainer.job_config.summary.sample_tokens
    if num_tokens == 0 or trainer.tokenizer is None:
        return []
    (model,) = trainer.model_parts
    model.eval()
    samples = []
    for prompt in SAMPLE_PROMPTS:
        ids = trainer.tokenizer.encode(prompt, add_bos=False, add_eos=False)
        tokens = torch.tensor([ids], device=device_type)
        drawn = sample(model, tokens, num_tokens, multiple=64 * trainer.parallel_dims.tp)
        samples.append(trainer.tokenizer.decode(drawn[0].tolist()))
    model.train()
    return samples


def _mean_of_the_last_tenth(history: list[dict[str, float]]) -> float | None:
    """Return the mean loss of the logged steps among the last tenth: one batch says little."""
    if not history:
        return None
    begin = 0.9 * history[-1]["step"]
    return statistics.fmean(entry["loss"] for entry in history if entry["step"] > begin)


def write_summary(config: JobConfig, summary: dict[str, Any], samples: list[str]) -> None:
    """Write summary.json and loss.png into the run's folder, and print both; rank 0 calls it."""
    folder = Path(config.job.dump_folder)
    curve = folder / LOSS_CURVE
    draw_loss_curve(config, summary, curve)
    content = {**summary, "samples": samples, "files": run_files(config, curve)}
    (folder / SUMMARY).write_text(json.dumps(content, indent=2) + "\n")
    for line in summary_lines(content):
        logger.info(line)
    logger.info(f"  {'as a page':<16} titan-motif report {folder}")


def run_files(config: JobConfig, curve: Path) -> dict[str, str]:
    """Return where everything of a run lies."""
    folder = Path(config.job.dump_folder)
    files = {
        "summary": folder / SUMMARY,
        "loss_curve": curve,
        "config": folder / RESOLVED_CONFIG,
        "environment": folder / ENVIRONMENT,
    }
    if config.metrics.enable_tensorboard:
        files["tensorboard"] = folder / config.metrics.save_tb_folder
    if config.evaluation.enable:
        files["evaluation"] = folder / EVALUATIONS
    if config.checkpoint.enable:
        files["checkpoints"] = folder / config.checkpoint.folder
    return {name: str(path) for name, path in files.items()}


def summary_lines(content: dict[str, Any]) -> list[str]:
    """Return the summary as a person reads it."""

    def nats(key: str) -> str:
        return "-" if content[key] is None else f"{content[key]:.4f} nats/token"

    lines = [
        f"run finished at step {content['step']}, {content['tokens_seen']:,} tokens seen",
        f"  train loss       {nats('train_loss')} (logged steps of the last tenth)",
        f"  validation loss  {nats('validation_loss')}",
    ]
    if content["bits_per_byte"] is not None:
        lines.append(f"  bits per byte    {content['bits_per_byte']:.4f} (validation)")
    if content["bigram_validation_loss"] is not None:
        gap = content["bigram_validation_loss"] - content["validation_loss"]
        side = "under" if gap >= 0 else "over"
        bigram, counted = nats("bigram_validation_loss"), content["bigram_train_tokens"]
        if counted == MAX_TRAIN_TOKENS:
            bigram += f" ({counted:,} tokens counted)"
        lines.append(f"  bigram model     {bigram}: the run is {abs(gap):.4f} {side} it")
    for text in content["samples"]:
        lines.append(f"  sample           {text!r}")
    lines += [f"  {name:<16} {path}" for name, path in content["files"].items()]
    return lines


def bits_per_byte(loss: float, labels: np.ndarray, token_bytes: np.ndarray) -> float:
    """Turn a mean loss in nats per token of `labels` into bits per byte of their text."""
    return loss * labels.size / math.log(2) / int(token_bytes[labels].sum())


def draw_loss_curve(config: JobConfig, summary: dict[str, Any], path: Path) -> None:
    """Draw training and validation loss over steps, with the bigram model's as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    history = read_history(config.job.dump_folder)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for key, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else ""
            )
    if summary["bigram_validation_loss"] is not None:
        axes.axhline(summary["bigram_validation_loss"], ls="--", c="gray", label="bigram model")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=config.job.description)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
