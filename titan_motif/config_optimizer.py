"""What a job's settings of the optimizer must be: each rule gives the key and what is wrong."""

from collections.abc import Iterator

import torch

from titan_motif.components.muon.routing import route
from titan_motif.config import JobConfig, Muon
from titan_motif.config_keys import Finding
from titan_motif.config_types import told
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
    """Yield every pattern of names that does not fit the network's parameters, or the others."""
    muon = config.optimizer.muon
    given = {key: getattr(muon, key) for key in ("muon_patterns", "adamw_patterns")}
    given = {key: patterns for key, patterns in given.items() if patterns}
    if not given or config.optimizer.name != "ParallelMuon":
        return
    with torch.device("meta"):
        parameters = dict(Motif2Model(args).named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    example = next(name for name in shapes if name.startswith("layers."))
    for chosen in (*({key: patterns} for key, patterns in given.items()), given):
        try:
            route(shapes, **chosen)
        except ValueError as error:
            key, patterns = next(iter(chosen.items()))
            yield (
                f"optimizer.muon.{key}",
                f"is {told(patterns)}; {error} (names are such as {example!r})",
            )
            return
