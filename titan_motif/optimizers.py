"""The optimizers of a run: torchtitan's AdamW and Adam, or Parallel Muon, as its builder wants."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torchtitan.components import optimizer as torchtitan_optimizer
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.distributed import ParallelDims
from torchtitan.tools.logging import logger

from titan_motif import config as job
from titan_motif.attention_monitor import AttentionMonitor
from titan_motif.components.muon import Coefficients, ParallelMuon, named_coefficients
from titan_motif.components.muon.routing import route, routing_table
from titan_motif.model.initialization import plain_name

_SETTINGS = "param_groups."


class MuonContainer(OptimizersContainer):
    """Parallel Muon of each part of the model, saved and loaded as torchtitan does others."""

    def __init__(self, model_parts: Sequence[nn.Module], config: job.Optimizer) -> None:
        self.model_parts = list(model_parts)
        self.optimizers = [parallel_muon(part, config) for part in model_parts]
        parameters = [p for part in model_parts for p in part.parameters() if p.requires_grad]
        Optimizer.__init__(self, parameters, {})

    def state_dict(self) -> dict[str, Any]:
        """Return the state alone: the job says the settings at every start."""
        return {k: v for k, v in super().state_dict().items() if not k.startswith(_SETTINGS)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = super().state_dict().items()
        super().load_state_dict(state_dict | {k: v for k, v in own if k.startswith(_SETTINGS)})


def parallel_muon(model: nn.Module, config: job.Optimizer) -> ParallelMuon:
    """Build the optimizer of a model, and log which algorithm updates which parameter.

    Raises: ValueError, one line, for patterns and settings that do not fit the model
    """
    muon = config.muon
    named = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
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
        max_skipped_steps=muon.max_skipped_steps,
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

    After each step its `monitor` looks at attention, and clips where the job says so.
    """
    if optimizer_config.name == "ParallelMuon":
        container: OptimizersContainer = MuonContainer(model_parts, optimizer_config)
    else:
        container = torchtitan_optimizer.build_optimizers(
            model_parts, optimizer_config, parallel_dims, ft_manager
        )
    (model,) = model_parts
    container.monitor = AttentionMonitor(model, optimizer_config)
    container.register_step_post_hook(container.monitor)
    return container
