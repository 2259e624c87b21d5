"""How long a plan takes, by its operations and bytes; how many replicas should share owners."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from titan_motif.components.muon.method import Method, Mode, method_of, newton_schulz_flops
from titan_motif.components.muon.plan import Matrix, Plan, Transfers, make_plan


@dataclass(frozen=True)
class Rates:
    """What the hardware does in a second.

    Of links, chosen for nodes of eight H200s and not measured: 300 GB/s is two thirds of NVLink's
    450 GB/s each way, 50 GB/s between nodes is a port of 400 Gb/s for each GPU.
    """

    flops: float = 610e12
    """Of Newton-Schulz, symmetric products counted as half: one H200 took 94.5 ms for what one of 8
    ranks owns of the 12.7B model, 57.7 TFLOP."""
    bytes_in_node: float = 300e9
    bytes_between_nodes: float = 50e9
    """Sent or received by one rank, the larger of both."""
    ranks_per_node: int = 8


DEFAULT_RATES = Rates()


@dataclass(frozen=True)
class Prediction:
    """What the step of one exchange group costs its busiest ranks."""

    total_ms: float
    compute_ms: float
    exchange_ms: float
    """Both alone, as if nothing overlapped."""
    flops_per_rank: int
    """Of the rank that computes most."""
    max_over_mean: float
    """Of the operations that ranks do."""
    bytes_per_rank: int
    """Sent or received, both directions, by the rank that exchanges most."""
    peak_exchange_bytes: int
    """Buffers, assembled matrices and results of a chunk, of the rank that holds most.

    What Newton-Schulz itself needs for a batch comes on top: at four matrices a rank and chunk of
    the 12.7B model two thirds as much again, measured on an H200."""


def costs_of(matrices: Sequence[Matrix], mode: Mode, method: Method, num_steps: int) -> list[int]:
    """Return the operations that each matrix takes, by which owners are balanced."""
    method = method_of(mode, method)
    return [newton_schulz_flops(*matrix.shape, num_steps, method) for matrix in matrices]


def predict(plan: Plan, costs: Sequence[int], rates: Rates, element_bytes: int = 2) -> Prediction:
    """Follow the schedule: while a chunk is computed, the next is gathered, the last scattered."""
    compute, gather, scatter = [], [], []
    work: dict[int, int] = dict.fromkeys(plan.ranks, 0)
    moved: dict[int, int] = dict.fromkeys(plan.ranks, 0)
    held = {kind: dict.fromkeys(plan.ranks, 0) for kind in ("gather", "scatter", "matrices")}
    for chunk in plan.chunks:
        here: dict[int, int] = defaultdict(int)
        owned: dict[int, int] = defaultdict(int)
        for matrix in chunk:
            for owner in plan.owners[matrix]:
                here[owner] += costs[matrix]
                owned[owner] += plan.matrices[matrix].rows * plan.matrices[matrix].columns
        for rank, flops in here.items():
            work[rank] += flops
            held["matrices"][rank] = max(held["matrices"][rank], 2 * owned[rank])
        compute.append(max(here.values(), default=0) / rates.flops)
        # Where everyone owns everything, one rank stands for all.
        rank = plan.ranks[0] if plan.everyone_owns else None
        for kind, seconds, transfers in (
            ("gather", gather, plan.gathers(chunk, rank)),
            ("scatter", scatter, plan.scatters(chunk, rank)),
        ):
            seconds.append(_exchange_seconds(transfers, rates, element_bytes))
            for rank, (sent, received, own) in _elements(transfers).items():
                moved[rank] += max(sent, received)
                held[kind][rank] = max(held[kind][rank], sent + received + 2 * own)
    total = sum((gather[0], scatter[-1])) if plan.chunks else 0.0
    for index, seconds in enumerate(compute):
        following = gather[index + 1] if index + 1 < len(gather) else 0.0
        total += max(seconds, following + (scatter[index - 1] if index else 0.0))
    mean = sum(work.values()) / len(work)
    peaks = (sum(held[kind][rank] for kind in held) for rank in plan.ranks)
    return Prediction(
        total_ms=1000 * total,
        compute_ms=1000 * sum(compute),
        exchange_ms=1000 * (sum(gather) + sum(scatter)),
        flops_per_rank=max(work.values()),
        max_over_mean=max(work.values()) / mean if mean else 1.0,
        bytes_per_rank=element_bytes * max(moved.values()),
        peak_exchange_bytes=element_bytes * max(peaks),
    )


def _elements(transfers: Transfers) -> dict[int, tuple[int, int, int]]:
    """Return, by rank, the elements sent to others, received from others, and kept."""
    sent: dict[int, int] = defaultdict(int)
    received: dict[int, int] = defaultdict(int)
    own: dict[int, int] = defaultdict(int)
    for (sender, receiver), parts in transfers.items():
        size = sum(part.region.size for part in parts)
        if sender == receiver:
            own[sender] += size
        else:
            sent[sender] += size
            received[receiver] += size
    return {rank: (sent[rank], received[rank], own[rank]) for rank in {*sent, *received, *own}}


def _exchange_seconds(transfers: Transfers, rates: Rates, element_bytes: int) -> float:
    """Return the seconds of the rank that takes longest."""
    near: dict[tuple[int, str], int] = defaultdict(int)
    far: dict[tuple[int, str], int] = defaultdict(int)
    for (sender, receiver), parts in transfers.items():
        if sender == receiver:
            continue
        is_near = sender // rates.ranks_per_node == receiver // rates.ranks_per_node
        size = element_bytes * sum(part.region.size for part in parts)
        for end in ((sender, "sent"), (receiver, "received")):
            (near if is_near else far)[end] += size
    slowest = max(near.values(), default=0) / rates.bytes_in_node
    return max(slowest, max(far.values(), default=0) / rates.bytes_between_nodes)


def groups_of_replicas(replicas: Sequence[Sequence[int]], scope: int) -> list[list[list[int]]]:
    """Return the replicas in groups of `scope`, which share owners.

    Raises: ValueError if that leaves some over
    """
    if scope < 1 or len(replicas) % scope:
        allowed = ", ".join(map(str, scopes_of(len(replicas))))
        raise ValueError(f"owner_scope is {scope}; one of {allowed} is needed")
    starts = range(0, len(replicas), scope)
    return [[list(r) for r in replicas[start : start + scope]] for start in starts]


def unlike_groups(groups: Sequence[list[list[int]]], rates: Rates) -> list[list[list[int]]]:
    """Return one of each kind of group: they differ in where in a node they begin."""
    kinds = {group[0][0] % rates.ranks_per_node: group for group in reversed(groups)}
    return list(kinds.values())


def scopes_of(num_replicas: int) -> list[int]:
    """Return how many replicas may share owners: from each for itself to all together."""
    return [scope for scope in range(1, num_replicas + 1) if num_replicas % scope == 0]


def plan_for(
    rank: int,
    matrices: Sequence[Matrix],
    replicas: Sequence[Sequence[int]],
    costs: Sequence[int],
    chunk_size: int | None = None,
    owner_scope: int | None = None,
    everyone_owns: bool = False,
    rates: Rates = DEFAULT_RATES,
) -> Plan:
    """Return the plan of the ranks that a rank exchanges with.

    Args: owner_scope: replicas that share owners; None chooses the fastest
    """
    if everyone_owns:
        owner_scope = 1
    elif owner_scope is None:
        owner_scope = fastest_scope(matrices, replicas, costs, rates, chunk_size)
    groups = groups_of_replicas(replicas, owner_scope)
    (own,) = [group for group in groups if any(rank in replica for replica in group)]
    return make_plan(matrices, own, costs, chunk_size, everyone_owns)


def fastest_scope(
    matrices: Sequence[Matrix],
    replicas: Sequence[Sequence[int]],
    costs: Sequence[int],
    rates: Rates,
    chunk_size: int | None = None,
) -> int:
    """Return how many replicas should share owners, by the predicted time; the fewest if equal.

    Sharing spreads the work over more ranks, and sends every result to more of them.
    """

    def milliseconds(scope: int) -> float:
        groups = unlike_groups(groups_of_replicas(replicas, scope), rates)
        plans = (make_plan(matrices, group, costs, chunk_size) for group in groups)
        return max(predict(plan, costs, rates).total_ms for plan in plans)

    return min(scopes_of(len(replicas)), key=milliseconds)
