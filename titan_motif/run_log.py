"""What of a run's log is shown, and how a line of it looks."""

import errno
import logging
import threading
import warnings

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
from torchtitan.tools.logging import init_logger, logger

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Of an OSError: the disk, or a user's share of it, is full."""


class _DropNoise(logging.Filter):
    """Drop torchtitan's lines that do not hold here, or that tell a reader nothing."""

    noise = (
        "Mixed precision training ",  # FSDP, not autocast, sets the precision on every layout
        "Peak FLOPS used for computing MFU: nan",
        "ENV[TORCH_",
        "[GC]",
        "model.safetensors.index.json not found",
        "Checkpointer ",
        "Error running lspci",  # only looked for on some GPUs
        "Building motif2 ",  # all of it is in config.resolved.toml
        "Successfully created meshes",
        "Synchronizing and adjusting timeout",
        "Destroying the purge thread",
        "Sleeping 2 seconds",
        "Training starts at step",  # loading says from where, and there may be nothing to start
        "Trainer is initialized with ",  # of a batch that a curriculum changes
    )

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.noise)


def start_logging() -> None:
    """Log plain lines with the time; a warning says that it is one."""
    init_logger()
    threading.excepthook = _tell_of_thread
    handler = logger.handlers[0]
    handler.setFormatter(_Line(datefmt="%H:%M:%S"))
    handler.addFilter(_DropNoise())
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    # Of a parameter that is cut twice: gathering it takes two collectives, which an evaluation may.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    for message in ("DTensor", "'set_vital' is deprecated", "Set timeout is now only"):
        warnings.filterwarnings("ignore", message=message)


def _tell_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Print what a thread died of; not that TensorBoard's has no room, which its writer raises."""
    is_tensorboard = type(failed.thread).__module__.startswith("tensorboard.")
    if is_tensorboard and getattr(failed.exc_value, "errno", None) in NO_ROOM:
        return
    threading.__excepthook__(failed)


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{self.formatTime(record, self.datefmt)}  {level}{record.getMessage()}"
        return text if record.exc_info is None else super().format(record)
