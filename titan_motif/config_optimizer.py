"""What a job's settings of the optimizer must be: each rule gives the key and what is wrong."""

from collections.abc import Iterator

import torch

from titan_motif.components.muon.routing import route
from titan_motif.config import JobConfig, Muon
from titan_motif.config_keys import Finding
from titan_motif.model import Motif2Model, Motif2ModelArgs


def check_optimizer(config: JobConfig) -> Iterator[Finding]:
    """Yield every finding that needs no network; ParallelMuon has the most."""
    optimizer, muon, unset = config.optimizer, config.optimizer.muon, Muon()
    if optimizer.name != "ParallelMuon":
        for name, value in vars(muon).items():
            if value != getattr(unset, name):
                yield (
                    f"optimizer.muon.{name}",
                    f"is {value!r}; it needs optimizer.name to be 'ParallelMuon', which is "
                    f"{optimizer.name!r}",
                )
        return
    if optimizer.implementation != "fused":
        yield (
            "optimizer.implementation",
            f"is {optimizer.implementation!r}; ParallelMuon has one implementation: 'fused'",
        )
    if config.training.enable_cpu_offload:
        yield (
            "training.enable_cpu_offload",
            "is true; ParallelMuon exchanges and orthogonalises on the GPU: optimizer.name = "
            "'AdamW' is needed",
        )
    if muon.adamw_lr is not None and not 0 < muon.adamw_lr < float("inf"):
        yield "optimizer.muon.adamw_lr", f"is {muon.adamw_lr}; more than 0 is needed"
    if not 0 <= muon.momentum < 1:
        yield "optimizer.muon.momentum", f"is {muon.momentum}; 0.0 to below 1.0 is allowed"
    replicas = config.parallelism.data_parallel_replicate_degree
    if muon.owner_scope != -1 and muon.mode == "distributed":
        yield (
            "optimizer.muon.owner_scope",
            f"is {muon.owner_scope}; mode = 'distributed' has no owners to share: -1 is needed",
        )
    elif muon.owner_scope > 0 and replicas > 0 and replicas % muon.owner_scope:
        yield (
            "optimizer.muon.owner_scope",
            f"is {muon.owner_scope}; -1 or a divisor of "
            f"parallelism.data_parallel_replicate_degree, {replicas}, is needed",
        )
    steps, default = muon.polar_express_steps, unset.polar_express_steps
    if steps != default and muon.coefficients != "polar_express":
        yield (
            "optimizer.muon.polar_express_steps",
            f"is {steps}; it needs coefficients = 'polar_express'",
        )


def check_muon_patterns(config: JobConfig, args: Motif2ModelArgs) -> Iterator[Finding]:
    """Yield every pattern of names that does not fit the network's parameters."""
    muon = config.optimizer.muon
    for key in ("muon_patterns", "adamw_patterns"):
        patterns = getattr(muon, key)
        if patterns and config.optimizer.name == "ParallelMuon":
            with torch.device("meta"):
                parameters = dict(Motif2Model(args).named_parameters())
            try:
                route({name: p.shape for name, p in parameters.items()}, **{key: patterns})
            except ValueError as error:
                yield f"optimizer.muon.{key}", f"is {patterns}: {error}"
