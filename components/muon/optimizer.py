"""Parallel Muon: every matrix is orthogonalised once, by its owner; AdamW updates the rest."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from titan_motif.components.muon.coefficients import Coefficients, named_coefficients
from titan_motif.components.muon.cost_model import costs_of, plan_for
from titan_motif.components.muon.exchange import ShardedOrthogonalizer, check_same_plan, group_of
from titan_motif.components.muon.layout import Family, families_of, local
from titan_motif.components.muon.method import Method, Mode, method_of
from titan_motif.components.muon.newton_schulz import orthogonalize
from titan_motif.components.muon.plan import Plan
from titan_motif.components.step_gate import Numbers, StepGate
from titan_motif.kernels import advance_momentum, apply_update

Scale = Literal["match_adamw", "spectral", "none"]

DEFAULTS: dict[str, dict[str, Any]] = {
    "muon": {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "scale": "match_adamw",
    },
    "adamw": {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8},
}
"""Settings of a group, by its algorithm (those of the released code)."""


def update_scale(scale: Scale, rows: int, columns: int) -> float:
    """Return the factor of an orthogonalised matrix before the learning rate.

    match_adamw  0.2 sqrt(max(rows, columns)): root mean square as of AdamW's updates, so that both
                 share a learning rate (https://arxiv.org/abs/2502.16982; the report's)
    spectral     sqrt(max(1, rows / columns)): Keller Jordan's, for a (rows out, columns in) matrix
                 (https://kellerjordan.github.io/posts/muon/)
    none         1
    """
    if scale == "match_adamw":
        return 0.2 * max(rows, columns) ** 0.5
    if scale == "spectral":
        return max(1.0, rows / columns) ** 0.5
    if scale == "none":
        return 1.0
    raise ValueError(f"scale is {scale!r}; one of match_adamw, spectral, none is needed")


class ParallelMuon(torch.optim.Optimizer):
    """Muon on sharded parameters, and AdamW on what is no matrix of a block.

    Equations: B <- mu B + G;  U = orthogonalize(G + mu B), or of B without nesterov;
               W <- (1 - lr wd) W - lr s U   (Motif 2 12.7B technical report, section on Parallel
               Muon, https://arxiv.org/abs/2511.07464; s: `update_scale`)
    State:     B, as a DTensor laid out like its parameter, on every rank from the beginning;
               AdamW's step, exp_avg, exp_avg_sq likewise

    Nothing changes in a step in which a number of any rank is not finite: a gradient, a parameter,
    the state, or what was added to the `gate`. A parameter without a gradient on every rank is left
    alone; one that lacks it on some ranks takes zeros there.

    Args:
        groups:       dicts of params, algorithm ("muon" | "adamw"), and settings as in DEFAULTS;
                      params may be (name, parameter), or param_names may stand beside them
        mode:         parallel: one owner a matrix; distributed: every rank repeats every matrix
                      (the report's baseline); exact: parallel, in the parameters' dtype, one
                      matrix at a time, so that neither chunks nor ranks change a bit
        coefficients: a name of titan_motif.components.muon.coefficients, or the (a, b, c) of steps
        method:       of Newton-Schulz
        chunk_size:   matrices that are exchanged at a time; None: four for each rank
        owner_scope:  replicas that share owners under HSDP; None: the fastest, as predicted
        max_skipped_steps: in a row; one more raises TooManySkippedSteps (titan_motif.components
                      .step_gate)
    Raises:    ValueError for a group or a parameter that it cannot serve
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        mode: Mode = "parallel",
        coefficients: str | Coefficients = "motif",
        method: Method = "auto",
        chunk_size: int | None = None,
        owner_scope: int | None = None,
        max_skipped_steps: int = 10,
    ) -> None:
        if mode not in ("parallel", "distributed", "exact"):
            raise ValueError(f"mode is {mode!r}; one of parallel, distributed, exact is needed")
        if isinstance(coefficients, str):
            coefficients = named_coefficients(coefficients)
        self.mode, self.coefficients = mode, coefficients
        self.method = method_of(mode, method)
        self.names: dict[Tensor, str] = {}
        super().__init__([self._complete(group) for group in groups], {})
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not parameters:
            raise ValueError("no parameters to update")
        names = [self.names[parameter] for parameter in parameters]
        self.gate = StepGate(names, parameters[0].device, max_skipped_steps)
        self._init_state()
        muon = [p for g in self._groups("muon") for p in g["params"]]
        self._families = families_of(muon, _rank())
        self._exchanges = [
            self._exchange(family, chunk_size, owner_scope) for family in self._families
        ]

    @property
    def plans(self) -> list[Plan]:
        """This rank's plan for each mesh that Muon's matrices lie on."""
        return [exchange.plan for exchange in self._exchanges]

    @property
    def exchange_groups(self) -> list[dist.ProcessGroup]:
        """The process groups that matrices travel in."""
        return [exchange.group for exchange in self._exchanges if exchange.group is not None]

    @torch.no_grad()
    def numbers(self) -> Numbers:
        """Return this rank's parts of gradients, parameters and state."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        return Numbers(
            [self._gradient(p) for p in parameters],
            [local(p) for p in parameters],
            [[local(value) for value in self.state[p].values()] for p in parameters],
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters; every rank has to call it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        numbers = self.numbers()
        bad, present = self.gate.decide(numbers)
        # By parameter: 1.0 where it is updated, 0.0 where everything stays as it is.
        go = dict(zip(parameters, ((1.0 - bad) * present).unbind(), strict=True))
        found = dict(zip(parameters, numbers.gradients, strict=True))
        for family, exchange in zip(self._families, self._exchanges, strict=True):
            self._step_muon(family.parameters, exchange, found, go)
        for group in self._groups("adamw"):
            self._step_adamw(group, found, bad, go)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state; settings stay those of the groups, which the job's configuration gave."""
        settings = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.param_groups
        ]
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, settings, strict=True):
            group.update(own)

    # ---- groups and state

    def _complete(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return a group with its algorithm's defaults; the parameters' names are kept apart.

        In a group, names would be saved once for each parameter.
        """
        group = dict(group)
        algorithm = group.get("algorithm")
        if algorithm not in DEFAULTS:
            raise ValueError(f"a group's algorithm is {algorithm!r}; muon or adamw is needed")
        allowed = {"params", "param_names", "algorithm", *DEFAULTS[algorithm]}
        if unknown := sorted(set(group) - allowed):
            raise ValueError(f"{algorithm} groups have no {', '.join(unknown)}")
        names = group.pop("param_names", None)
        members = [p if isinstance(p, tuple) else (None, p) for p in group["params"]]
        if names is not None:
            members = [(name, p) for name, (_, p) in zip(names, members, strict=True)]
        for index, (name, parameter) in enumerate(members):
            self.names[parameter] = name or f"parameter {index} of the {algorithm} group"
            if algorithm == "muon" and parameter.ndim != 2:
                raise ValueError(
                    f"{self.names[parameter]} has the shape {tuple(parameter.shape)}; Muon needs "
                    "a matrix"
                )
        group = DEFAULTS[algorithm] | group | {"params": [p for _, p in members]}
        if algorithm == "muon":
            update_scale(group["scale"], 1, 1)
        return group

    def _groups(self, algorithm: str) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["algorithm"] == algorithm]

    def _init_state(self) -> None:
        """Create all state: on ranks without a part of a parameter too, as checkpoints need it."""
        for group in self.param_groups:
            for p in group["params"]:
                if group["algorithm"] == "muon":
                    self.state[p]["momentum"] = torch.zeros_like(p)
                else:
                    self.state[p]["step"] = torch.zeros((), device=p.device)
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)

    def _gradient(self, parameter: Tensor) -> Tensor | None:
        gradient = parameter.grad
        if gradient is None:
            return None
        if isinstance(parameter, DTensor) and gradient.placements != parameter.placements:
            raise ValueError(
                f"the gradient of {self.names[parameter]} is placed {gradient.placements}; "
                f"the parameter's {parameter.placements} is needed"
            )
        return local(gradient)

    # ---- Muon

    def _exchange(
        self, family: Family, chunk_size: int | None, owner_scope: int | None
    ) -> ShardedOrthogonalizer:
        costs = costs_of(family.matrices, self.mode, self.method, len(self.coefficients))
        plan = plan_for(
            _rank(),
            family.matrices,
            family.replicas,
            costs,
            chunk_size,
            owner_scope,
            everyone_owns=self.mode == "distributed",
        )
        group = group_of(plan.ranks, family.parameters[0])
        check_same_plan(plan, group, family.parameters[0].device)
        return ShardedOrthogonalizer(
            plan,
            rank=_rank(),
            group=group,
            dtype=family.parameters[0].dtype if self.mode == "exact" else torch.bfloat16,
            device=family.parameters[0].device,
            orthogonalize=self._orthogonalize,
            is_batched=self.mode != "exact",
        )

    def _orthogonalize(self, batch: Tensor) -> Tensor:
        options = {"dtype": None} if self.mode == "exact" else {}
        return orthogonalize(batch, self.coefficients, self.method, **options)

    def _step_muon(
        self,
        parameters: Sequence[Tensor],
        exchange: ShardedOrthogonalizer,
        gradients: dict[Tensor, Tensor | None],
        go: dict[Tensor, Tensor],
    ) -> None:
        group_of = {p: group for group in self._groups("muon") for p in group["params"]}

        def begin(number: int, target: Tensor | None) -> None:
            p = parameters[number]
            group = group_of[p]
            advance_momentum(
                local(self.state[p]["momentum"]),
                gradients[p],
                target,
                go[p],
                group["momentum"],
                group["nesterov"],
            )

        def apply(number: int, result: Tensor) -> None:
            p = parameters[number]
            group = group_of[p]
            rate = group["lr"] * update_scale(group["scale"], *p.shape)
            apply_update(local(p), result, go[p], group["lr"] * group["weight_decay"], rate)

        exchange.run(begin, apply)

    # ---- AdamW

    def _step_adamw(
        self,
        group: dict[str, Any],
        gradients: dict[Tensor, Tensor | None],
        bad: Tensor,
        go: dict[Tensor, Tensor],
    ) -> None:
        here = [p for p in group["params"] if gradients[p] is not None]
        self._adamw(group, here, [gradients[p] for p in here], bad)
        for p in group["params"]:
            if gradients[p] is None:  # there may be one on other ranks
                self._adamw(group, [p], [torch.zeros_like(local(p))], 1.0 - go[p])

    def _adamw(
        self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor], skip: Tensor
    ) -> None:
        if not params:
            return
        states = [self.state[p] for p in params]
        adamw(
            [local(p) for p in params],
            gradients,
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=skip,
            amsgrad=False,
            maximize=False,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
