"""After every step: how large attention's logits became, QK-clip where they are too large, figures.

What the model records on the device (titan_motif.model.attention_record) is reduced over all ranks
in one collective a step, and read by the host only where a line is logged.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torchtitan.tools.logging import logger

from titan_motif import config as job
from titan_motif.components.muon import QKClip
from titan_motif.kernels import key_heads
from titan_motif.model import Motif2Model
from titan_motif.model.initialization import plain_name

RATIO_BOUND = 1.0
"""The default of metrics.noise_ratio_bound."""


class AttentionMonitor:
    """Of one model; a hook after the step of its optimizer.

    The trainer says at the beginning of each step which one it is; without one that does, steps
    are counted from the start of the process.
    """

    def __init__(self, model: Motif2Model, config: job.Optimizer) -> None:
        self.record = model.attention_record
        self.grouped_ratio = model.model_args.grouped_ratio
        self.ratio_bound = RATIO_BOUND
        self.interval = config.qk_clip_interval
        self.clip = qk_clip(model, config) if config.qk_clip else None
        if self.clip is not None:
            self.record.exact_above = config.qk_clip_threshold
        self._warned: set[int] = set()
        self._since_log: Tensor | None = None
        self._num_clipped: Tensor | int = 0
        self.begin_step(1, will_log=False)

    def begin_step(self, step: int, will_log: bool) -> None:
        """Let the model record if this step's maxima are needed; drop those of a step undone."""
        self.step = step
        self.record.is_recording = will_log or self._clips_at(step)
        if self.record.maxima.device.type != "meta":
            self.record.reset()

    def _clips_at(self, step: int) -> bool:
        return self.clip is not None and step % self.interval == 0

    @torch.no_grad()
    def __call__(self, *unused) -> None:
        """Reduce, clip, remember; every rank has to call it."""
        if self.record.is_recording:
            maxima = self.record.maxima
            if dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(maxima, dist.ReduceOp.MAX)
            if self._clips_at(self.step):
                self._num_clipped = self._num_clipped + self.clip(maxima[:, :-2])
            before = self._since_log
            self._since_log = maxima.clone() if before is None else before.maximum(maxima)
        self.begin_step(self.step + 1, will_log=False)

    def metrics(self) -> dict[str, float]:
        """Return the largest figures since the last call, by layer; {} if nothing was recorded."""
        if self._since_log is None:
            return {}
        *logits, ratios, lams = self._since_log.T.tolist()
        largest = [max(heads) for heads in zip(*logits, strict=True)]
        found = {"attention/max_logit": max(largest)}
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
        """Warn once when a layer passes the bound, and again only after it has come back."""
        above = {layer for layer, ratio in enumerate(ratios) if not ratio <= self.ratio_bound}
        for layer in sorted(above - self._warned):
            logger.warning(
                f"layer {layer}: lambda times the noise maps is {ratios[layer]:.2f} times as large "
                f"as the signal maps (metrics.noise_ratio_bound is {self.ratio_bound}): noise "
                "heads suppress what signal heads find"
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
    return QKClip(
        queries,
        keys,
        key_heads(args.n_heads, args.n_kv_heads, args.grouped_ratio),
        args.head_dim,
        config.qk_clip_threshold,
        config.qk_clip_balance,
    )
