"""What all measured configurations share: the network, the batch, the data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from titan_motif.config_loading import ConfigError, load_config
from titan_motif.corpus.prepare import prepare
from titan_motif.model import FLAVORS
from titan_motif.study.machine import choose_device, choose_flavor
from titan_motif.study.runner import Row, run_module

STEPS_OF_A_JOB = 10_000
"""What every measured job claims, so that its first steps are those of a warm-up."""


@dataclass(frozen=True)
class Workload:
    """The job that is measured, but for what its cells differ in."""

    flavor: str
    """Empty with a configuration file, which names one."""
    layers: int | None
    """None: as many as the flavor has."""
    seq_len: int | None
    """None: that of the configuration file."""
    batch: int
    """Sequences of a step, which is one micro-batch."""
    config: Path | None = None
    """A job's file."""
    more: Sequence[str] = ()
    """Further settings: section.field=value."""

    def overrides(self) -> list[str]:
        """Return the job's settings that make it."""
        return [*self._own(), *(f"--{setting}" for setting in self.more)]

    def _own(self) -> Iterator[str]:
        if self.config is not None:
            yield f"--job.config_file={self.config}"
        if self.flavor:
            yield f"--model.flavor={self.flavor}"
        if self.layers is not None:
            yield f"--model.args.n_layers={self.layers}"
        if self.seq_len is not None:
            yield f"--training.seq_len={self.seq_len}"
        # Phases would decide length and batch.
        yield "--curriculum.enable=false"
        yield f"--training.local_batch_size={self.batch}"
        yield f"--training.global_batch_size={self.batch}"
        yield f"--training.steps={STEPS_OF_A_JOB}"

    def check_more(self, decided: Sequence[str]) -> None:
        """Raise ValueError for a further setting that the workload or its cells decide."""
        keys = {_key(override) for override in (*self._own(), *decided)}
        for setting in self.more:
            if _key(setting) in keys:
                raise ValueError(f"--override has {setting!r}; an option of its own decides that")


def _key(override: str) -> str:
    return override.removeprefix("--").partition("=")[0].replace("-", "_")


def choose_workload(
    flavor: str = "",
    layers: int | None = None,
    seq_len: int | None = None,
    batch: int | None = None,
    config: Path | None = None,
    more: Sequence[str] = (),
) -> Workload:
    """Return what was asked for, the rest as fits the machine.

    On a GPU that is 8 layers of 12_7b and 4 sequences of 4096 tokens, on a CPU 2 of 128 tokens and
    the debug flavor.

    Raises: ValueError, one line, for what makes no workload
    """
    device = choose_device()
    has_gpu = device == "cuda"
    for name, value in (("layers", layers), ("seq-len", seq_len), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; at least 1 is needed")
    if flavor and config is not None:
        raise ValueError(f"--flavor is {flavor!r} and --config {config}; one of them is allowed")
    if batch is None:
        batch = 4 if has_gpu else 2
    if config is not None:
        return Workload("", layers, seq_len, batch, config, tuple(more))
    flavor = choose_flavor(flavor, device, FLAVORS)
    if layers is None and has_gpu:
        layers = min(8, FLAVORS[flavor].n_layers)
    seq_len = seq_len or (4096 if has_gpu else 128)
    return Workload(flavor, layers, seq_len, batch, None, tuple(more))


def prepare_data(jobs: Sequence[Sequence[str]]) -> None:
    """Make the built-in corpus if the jobs read it and it is not there.

    Args:
        jobs: the settings of each, which read the same data
    Raises: ValueError if none of them is a job, the first one's
    """
    problems = []
    for overrides in jobs:
        try:
            training = load_config(overrides, world_size=1, runs_here=False).training
            break
        except ConfigError as error:
            problems.append(error)
    else:
        raise problems[0]
    if training.dataset == "builtin" and not Path(training.dataset_path).exists():
        prepare(training.dataset_path, training.builtin_vocab_size)


@dataclass(frozen=True)
class Conditions:
    """How each cell is measured."""

    steps: int
    warmup: int
    """Steps before the measured ones."""
    timeout_seconds: float
    """Of the whole process, compilation included."""
    is_cold: bool
    """Whether a cell compiles what an earlier one has compiled already."""

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("warmup", self.warmup)):
            if value < 1:
                raise ValueError(f"--{name} is {value}; at least 1 is needed")
        if not self.timeout_seconds > 0:
            raise ValueError(f"--timeout is {self.timeout_seconds}; more than 0 is needed")


def run_cell(overrides: Sequence[str], conditions: Conditions, model: str = "motif2") -> Row:
    """Return the figures of a job's steps (titan_motif.study.cell), or why there are none."""
    try:  # what this machine cannot do needs no process to be found out
        load_config(overrides, world_size=1)
    except ConfigError as error:
        return {"error": str(error)}
    own = ["--steps", str(conditions.steps), "--warmup", str(conditions.warmup), "--model", model]
    return run_module(
        "titan_motif.study.cell",
        [*own, "--", *overrides],
        conditions.timeout_seconds,
        is_cold=conditions.is_cold,
    )
