"""Benchmarks of a model in training, as `titan-motif evaluate` has them of the step that is saved.

At an interval every rank gathers the whole model onto its device, in the dtype that training
computes in, and takes its share of the requests: FSDP, HSDP, tensor parallelism, FP8 and
torch.compile are what the sharded model has, and the copy has none of them.
"""

import contextlib
import json
import random
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import GarbageCollection, device_module

from titan_motif.components.whole_files import replace_text
from titan_motif.config import JobConfig
from titan_motif.evaluation.loading import empty_model
from titan_motif.evaluation.ranks import Ranks
from titan_motif.evaluation.results import lines_of, values_of
from titan_motif.harness.installed import require_harness
from titan_motif.harness.presets import wanted_tasks
from titan_motif.model import Motif2Model, Motif2ModelArgs
from titan_motif.model.initialization import plain_name
from titan_motif.run_folder import EVALUATIONS


class IntervalEvaluator:
    """Evaluates every `evaluation.freq` steps and at the last one; the tasks are loaded once.

    Results go to the log, to the run's TensorBoard and to FOLDER/evaluation/step-N.json.

    Raises: ValueError, one line, if a task cannot be run with these settings; RuntimeError if a
            rank waits for another longer than `evaluation.timeout_seconds`
    """

    def __init__(
        self,
        config: JobConfig,
        args: Motif2ModelArgs,
        device: torch.device,
        metrics: MetricsProcessor,
    ) -> None:
        require_harness()
        from titan_motif.evaluation.benchmarks import Benchmarks, Settings
        from titan_motif.evaluation.local_tasks.perplexity import held_out_splits

        self.config, self.args, self.device, self.metrics = config, args, device, metrics
        self.dtype = TORCH_DTYPE_MAP[config.training.mixed_precision_param]
        self.folder = Path(config.job.dump_folder) / EVALUATIONS
        chosen = config.evaluation
        self.ranks = Ranks(timedelta(seconds=chosen.timeout_seconds))
        settings = Settings(
            num_fewshot=chosen.num_fewshot,
            limit=chosen.limit,
            batch_size=chosen.batch_size,
            max_length=chosen.max_length,
            max_new_tokens=chosen.max_new_tokens,
            chat=chosen.chat,
        )
        with _same_random_numbers(device):
            wanted, tokenizer = wanted_tasks(chosen.tasks), Path(config.model.hf_assets_path)
            self.benchmarks = Benchmarks(wanted, tokenizer, settings)
            with torch.device("meta"):
                network = Motif2Model(args)
            model = self.benchmarks.model(network, self.ranks)
            self.benchmarks.complete(model, held_out_splits(config))

    def is_due(self, step: int, is_new: bool) -> bool:
        """Return whether a step is to be evaluated, the same on all ranks; all have to call it.

        Args: is_new: whether this start of the run has trained it; of one that was loaded it counts
                      whether there are results
        """
        chosen, last = self.config.evaluation, self.config.training.steps
        if step == 0 or (step % chosen.freq and step != last):
            return False
        return is_new or not self.ranks.all_gather(torch.tensor(self._file(step).is_file()))[0]

    def evaluate(self, model: nn.Module, step: int) -> None:
        """Evaluate a sharded model and report it; every rank has to call it."""
        begin = time.perf_counter()
        with _same_random_numbers(self.device):
            self._evaluate(model, step)
        GarbageCollection.collect("after an evaluation", generation=2)
        device_module.empty_cache()
        # One rank adds up and reports: the others wait here, and not in a collective of training,
        # which has a shorter time-out.
        self.ranks.barrier()
        # What is reported of training does not count this time.
        self.metrics.time_last_log += time.perf_counter() - begin

    def _evaluate(self, model: nn.Module, step: int) -> None:
        try:
            network = gathered_model(model, self.args, self.device, self.dtype)
        except ValueError as error:
            logger.warning(f"evaluation at step {step} is left out: {error}")
            return
        figures = self.benchmarks.run(self.benchmarks.model(network, self.ranks))
        if figures is None:
            return
        for line in (f"evaluation at step {step}, {figures['seconds']:.1f} s", *lines_of(figures)):
            logger.info(line)
        self.metrics.logger.log(values_of(figures), step)
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"checkpoint": None, "step": step, **figures}, indent=1)
        replace_text(self._file(step), content + "\n")

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step}.json"


@torch.no_grad()
def gathered_model(
    model: nn.Module, args: Motif2ModelArgs, device: torch.device, dtype: torch.dtype
) -> Motif2Model:
    """Return a sharded model whole on this device, as `load_model` makes it of a saved step.

    Every rank has to call it. Memory is that of the whole model and of its largest parameter.

    Args: dtype: of all but lambda's vectors and PolyNorm's coefficients, which are in float32
    Raises: ValueError, on all ranks, naming a parameter that has values that are not finite
    """
    whole = empty_model(args, device, dtype)
    # As it is saved: parameters that FSDP has left gathered are sharded again.
    state = {plain_name(name): value for name, value in model.state_dict().items()}
    for name, parameter in whole.named_parameters():
        value: Tensor = state[name]
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if not value.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")
        parameter.copy_(value)
    return whole


@contextlib.contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave every generator behind as it was: the harness seeds all of them."""
    ours, numpys = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)
