"""The network that a job trains: a flavor's arguments, with the job's own."""

import dataclasses

from titan_motif.config import JobConfig
from titan_motif.model import FLAVORS, Motif2ModelArgs


def model_args(config: JobConfig) -> Motif2ModelArgs:
    """Return the flavor's arguments with the job's overrides; ValueError if they do not fit."""
    args = dataclasses.replace(FLAVORS[config.model.flavor])
    args.override(dataclasses.asdict(config.model.args))
    return args
