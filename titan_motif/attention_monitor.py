"""After every step: how large attention's logits became, QK-clip where they are too large, figures.

What the model records on the device (titan_motif.model.attention_record) is reduced over all ranks
in one collective a step, and read by the host only where a line is logged.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torchtitan.tools.logging import logger

from titan_motif import config as job
from titan_motif.components.metrics import RunMetrics
from titan_motif.components.muon import QKClip
from titan_motif.components.step_gate import StepGate
from titan_motif.kernels import key_heads
from titan_motif.model import Motif2Model
from titan_motif.model.initialization import plain_name


class AttentionMonitor:
    """Of one model; a hook after the step of its optimizers, whose gate decides about the step.

    The trainer says at the beginning of each step which one it is; without one that does, steps
    are counted from the start of the process.
    """

    def __init__(self, model: Motif2Model, config: job.Optimizer, gate: StepGate) -> None:
        self.record, self.gate = model.attention_record, gate
        self.grouped_ratio = model.model_args.grouped_ratio
        self.interval = config.qk_clip_interval
        self.clip = qk_clip(model, config) if config.qk_clip else None
        if self.clip is not None:
            self.record.exact_above = config.qk_clip_threshold
        self._will_log: Callable[[int], bool] = lambda step: False
        self._ratio_bound = job.Metrics.noise_ratio_bound
        self._warned: set[int] = set()
        self._since_log: Tensor | None = None
        self._num_clipped: Tensor | int = 0
        self.begin_step(1)

    def report_to(self, metrics: RunMetrics) -> None:
        """Record the steps that are logged, and warn at the bound of the job."""
        self._will_log = metrics.should_log
        self._ratio_bound = metrics.job_config.metrics.noise_ratio_bound
        self.begin_step(self.step)

    def begin_step(self, step: int) -> None:
        """Let the model record if this step's maxima are needed."""
        self.step = step
        self.record.is_recording = self._clips_at(step) or self._will_log(step)
        self.record.reset()

    def _clips_at(self, step: int) -> bool:
        return self.clip is not None and step % self.interval == 0

    def before_step(self, *unused) -> None:
        """Let the gate see the largest logits of this rank's heads."""
        if self.record.seen_heads is not None:
            self.gate.watch(
                "largest attention logit", self.record.maxima[:, self.record.seen_heads]
            )

    @torch.no_grad()
    def __call__(self, *unused) -> None:
        """Reduce, clip, remember; every rank has to call it."""
        if self.record.is_recording:
            maxima = self.record.maxima
            if dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(maxima, dist.ReduceOp.MAX)
            if self._clips_at(self.step):
                logits = maxima[:, :-2]
                if self.gate.refused is not None:  # after a step that changed nothing, nothing
                    is_refused = self.gate.refused.bool().to(logits.device)
                    logits = logits.masked_fill(is_refused, -math.inf)
                self._num_clipped = self._num_clipped + self.clip(logits)
            before = self._since_log
            self._since_log = maxima.clone() if before is None else before.maximum(maxima)
        self.begin_step(self.step + 1)

    def metrics(self) -> dict[str, float]:
        """Return the largest figures since the last call, by layer; {} if nothing was recorded."""
        if self._since_log is None:
            return {}
        seen = self._since_log
        figures = torch.stack((seen[:, :-2].amax(1), seen[:, -2], seen[:, -1]))
        largest, ratios, lams = figures.tolist()
        found = {"attention/max_logit": figures[0].max().item()}
        columns = {"max_logit": largest}
        if self.grouped_ratio:
            columns |= {"noise_over_signal": ratios, "lambda": lams}
            self._warn(ratios)
        for name, values in columns.items():
            for layer, value in enumerate(values):
                found[f"attention_{name}/layer_{layer}"] = value
        if self.clip is not None:
            found["attention/clipped_heads"] = int(self._num_clipped)
        self._since_log, self._num_clipped = None, 0
        return found

    def _warn(self, ratios: list[float]) -> None:
        """Warn once when layers pass the bound, and again only after they have come back."""
        above = {layer for layer, ratio in enumerate(ratios) if not ratio <= self._ratio_bound}
        if new := sorted(above - self._warned):
            told = ", ".join(f"{ratios[layer]:.2f} times in layer {layer}" for layer in new)
            logger.warning(
                f"lambda times the noise maps is as large as the signal maps {told} "
                f"(metrics.noise_ratio_bound is {self._ratio_bound}): noise heads suppress what "
                "signal heads find"
            )
        self._warned = above


def qk_clip(model: Motif2Model, config: job.Optimizer) -> QKClip:
    """Build QK-clip over the query and key weights of all layers."""
    args = model.model_args
    parameters = {plain_name(name): p for name, p in model.named_parameters()}
    queries, keys = (
        [parameters[f"layers.{i}.attention.{name}.weight"] for i in range(args.n_layers)]
        for name in ("q_proj", "k_proj")
    )
    # ASSUMPTION: the report does not say how maxima are taken with noise heads. Here every map has
    # its own logits, and a key head follows the one of its query heads that asks for most.
    return QKClip(
        queries,
        keys,
        key_heads(args.n_heads, args.n_kv_heads, args.grouped_ratio),
        args.head_dim,
        config.qk_clip_threshold,
        config.qk_clip_balance,
    )
