"""The optimizers of a run: AdamW and Adam, or Parallel Muon, as torchtitan's builder wants them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.distributed import ParallelDims
from torchtitan.tools.logging import logger

from titan_motif import config as job
from titan_motif.attention_monitor import AttentionMonitor
from titan_motif.components.muon import Coefficients, ParallelMuon, named_coefficients
from titan_motif.components.muon.layout import local
from titan_motif.components.muon.routing import route, routing_table
from titan_motif.components.step_gate import Numbers, StepGate
from titan_motif.model.initialization import plain_name

_SETTINGS = "param_groups."
ADAMS = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}


class AdamContainer(OptimizersContainer):
    """torch's Adam or AdamW of a model; a step that the gate refuses changes nothing.

    The host waits for the gate's decision in every step: torch's own update has no way to leave a
    step out on the device for sharded parameters.
    """

    def __init__(self, model: nn.Module, config: job.Optimizer) -> None:
        super().__init__(
            [model],
            ADAMS[config.name],
            {
                "lr": config.lr,
                "betas": (config.beta1, config.beta2),
                "eps": config.eps,
                "weight_decay": config.weight_decay,
                "fused": config.implementation == "fused",
                "foreach": config.implementation == "foreach",
            },
        )
        self.named = trained_parameters(model)
        self.gate = StepGate(list(self.named), next(iter(self.named.values())).device)

    @torch.no_grad()
    def numbers(self) -> Numbers:
        """Return this rank's parts of gradients, parameters and state on the device."""
        (optimizer,) = self.optimizers
        parameters = self.named.values()
        return Numbers(
            [None if p.grad is None else local(p.grad) for p in parameters],
            [local(p) for p in parameters],
            [
                [local(v) for v in optimizer.state.get(p, {}).values() if v.device == p.device]
                for p in parameters
            ],
        )

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Update the parameters, unless the gate refuses the step on some rank."""
        refused, _ = self.gate.decide(self.numbers())
        if not refused.item():
            for optimizer in self.optimizers:  # super().step may have the hooks of this one
                optimizer.step(*args, **kwargs)


class MuonContainer(OptimizersContainer):
    """Parallel Muon of a model, saved and loaded as torchtitan does others."""

    def __init__(self, model: nn.Module, config: job.Optimizer) -> None:
        self.model_parts = [model]
        self.optimizers = [parallel_muon(model, config)]
        self.gate = self.optimizers[0].gate
        Optimizer.__init__(self, list(trained_parameters(model).values()), {})

    def numbers(self) -> Numbers:
        """Return this rank's parts of gradients, parameters and state."""
        (optimizer,) = self.optimizers
        return optimizer.numbers()

    def state_dict(self) -> dict[str, Any]:
        """Return the state alone: the job says the settings at every start."""
        return {k: v for k, v in super().state_dict().items() if not k.startswith(_SETTINGS)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state alone; the settings stay the job's."""
        own = super().state_dict().items()
        super().load_state_dict(state_dict | {k: v for k, v in own if k.startswith(_SETTINGS)})


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return what an optimizer updates, under the names that a model has without wrappers."""
    return {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def parallel_muon(model: nn.Module, config: job.Optimizer) -> ParallelMuon:
    """Build the optimizer of a model, and log which algorithm updates which parameter.

    Raises: ValueError, one line, for patterns and settings that do not fit the model
    """
    muon = config.muon
    named = trained_parameters(model)
    shapes = {name: tuple(p.shape) for name, p in named.items()}
    routes = route(shapes, muon.muon_patterns, muon.adamw_patterns)
    own = {
        "muon": {
            "lr": config.lr,
            "momentum": muon.momentum,
            "nesterov": muon.nesterov,
            "scale": muon.scale,
        },
        "adamw": {
            "lr": config.lr if muon.adamw_lr is None else muon.adamw_lr,
            "betas": (config.beta1, config.beta2),
            "eps": config.eps,
        },
    }
    groups = []
    for algorithm, settings in own.items():
        members = [(name, p) for name, p in named.items() if routes[name] == algorithm]
        common = {"algorithm": algorithm, "weight_decay": config.weight_decay}
        if members:
            groups.append(settings | common | {"params": members})
    optimizer = ParallelMuon(
        groups,
        mode=muon.mode,
        coefficients=muon_coefficients(muon),
        method=muon.method,
        chunk_size=None if muon.chunk_size == -1 else muon.chunk_size,
        owner_scope=None if muon.owner_scope == -1 else muon.owner_scope,
    )
    learning_rates = {algorithm: settings["lr"] for algorithm, settings in own.items()}
    for line in routing_table(shapes, routes, learning_rates):
        logger.info(f"optimizer: {line}")
    for plan in optimizer.plans:
        logger.info(
            f"optimizer: {len(plan.matrices)} matrices in {len(plan.chunks)} chunks, owners among "
            f"{len(plan.ranks)} ranks ({len(plan.replicas)} of the job's replicas)"
        )
    return optimizer


def muon_coefficients(muon: job.Muon) -> Coefficients:
    """Return the polynomials that the settings name."""
    steps = muon.polar_express_steps if muon.coefficients == "polar_express" else None
    return named_coefficients(muon.coefficients, steps)


def build_optimizers(
    model_parts: list[nn.Module],
    optimizer_config: job.Optimizer,
    parallel_dims: ParallelDims,
    ft_manager: None = None,
) -> OptimizersContainer:
    """Build what `optimizer.name` names, as torchtitan's TrainSpec wants it.

    Its `gate` decides whether a step is applied. After each step its `monitor` looks at attention,
    and clips where the job says so.
    """
    (model,) = model_parts
    kind = MuonContainer if optimizer_config.name == "ParallelMuon" else AdamContainer
    container = kind(model, optimizer_config)
    container.monitor = AttentionMonitor(model, optimizer_config, container.gate)
    container.register_step_pre_hook(container.monitor.before_step)
    container.register_step_post_hook(container.monitor)
    return container
