"""The plan of Parallel Muon: costs by the known totals, owners by their balance."""

import itertools
import random

import pytest

import titan_motif.device  # noqa: F401
from titan_motif.components.muon.cost_model import (
    Rates,
    fastest_scope,
    groups_of_replicas,
    predict,
    scopes_of,
)
from titan_motif.components.muon.method import newton_schulz_flops
from titan_motif.components.muon.owners import assign_owners
from titan_motif.components.muon.plan import (
    Matrix,
    Region,
    make_plan,
)

LAYER = [(5120, 4096), (2048, 4096), (2048, 4096), (4096, 8192), *[(16384, 4096)] * 2]
MATRICES = [*LAYER, (4096, 16384)] * 40
"""Of Motif-2-12.7B: queries, keys, values, output, gate, up, down."""


def max_over_mean(costs, owners, num_owners: int) -> float:
    loads = [0] * num_owners
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    return max(loads) * num_owners / sum(loads)


@pytest.mark.parametrize(
    ("method", "options", "teraflops"),
    [
        ("direct", {"is_symmetric": False}, 1010.2),
        ("direct", {}, 722),
        ("gram", {"restarts": (2,)}, 462),
    ],
)
def test_a_step_of_the_large_model_costs_its_known_operations(method, options, teraflops):
    total = sum(newton_schulz_flops(*shape, 5, method, **options) for shape in MATRICES)
    assert total / 1e12 == pytest.approx(teraflops, abs=0.5)


def test_operations_of_the_gram_form_are_those_of_its_products():
    m, n = 3, 7
    assert newton_schulz_flops(n, m, 5, "gram", restarts=(2,)) == 6 * m * m * n + 14 * m**3
    assert newton_schulz_flops(m, n, 5, "gram", restarts=()) == 3 * m * m * n + 17 * m**3
    assert newton_schulz_flops(m, n, 5, "gram", restarts=(0, 9)) == 3 * m * m * n + 17 * m**3


@pytest.mark.parametrize("num_owners", [8, 64])
@pytest.mark.parametrize("method", ["direct", "gram"])
def test_owners_of_the_large_model_are_balanced(method: str, num_owners: int):
    costs = [newton_schulz_flops(*shape, 5, method) for shape in MATRICES]
    owners = assign_owners(costs, num_owners)
    assert max_over_mean(costs, owners, num_owners) <= 1.02
    assert owners == assign_owners(costs, num_owners)


def test_more_owners_than_matrices_leave_the_largest_as_the_floor():
    costs = [newton_schulz_flops(*shape, 5, "gram") for shape in MATRICES]
    owners = assign_owners(costs, 400)
    loads = dict.fromkeys(owners, 0)
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    assert max(loads.values()) == max(costs)


def test_small_cases_are_near_the_best_there_is():
    draw = random.Random(0)
    for _ in range(30):
        costs = [draw.randrange(1, 40) for _ in range(7)]
        best = min(
            max(sum(c for c, o in zip(costs, owners, strict=True) if o == k) for k in range(3))
            for owners in itertools.product(range(3), repeat=7)
        )
        found = assign_owners(costs, 3)
        largest = max(sum(c for c, o in zip(costs, found, strict=True) if o == k) for k in range(3))
        assert best <= largest <= 1.15 * best


def test_no_items_and_no_owners():
    assert assign_owners([], 4) == []
    with pytest.raises(ValueError, match="0 owners; at least 1 is needed"):
        assign_owners([1, 2], 0)


def rows_over(shape: tuple[int, int], replicas) -> Matrix:
    """A matrix whose rows are cut over each replica's ranks, as FSDP and HSDP do."""
    regions = {}
    for replica in replicas:
        size = -(-shape[0] // len(replica))
        for index, rank in enumerate(replica):
            begin = min(index * size, shape[0])
            regions[rank] = Region(begin, min(begin + size, shape[0]), 0, shape[1])
    return Matrix(*shape, regions)


def large_model(replicas) -> tuple[list[Matrix], list[int]]:
    costs = [newton_schulz_flops(*shape, 5, "gram") for shape in MATRICES]
    return [rows_over(shape, replicas) for shape in MATRICES], costs


@pytest.mark.parametrize("chunk_size", [1, 3, None])
@pytest.mark.parametrize("everyone_owns", [False, True])
@pytest.mark.parametrize("replicas", [[[0, 1, 2]], [[0, 1], [2, 3]], [[5]]], ids=str)
def test_every_owner_gets_whole_matrices_and_every_rank_its_part(
    replicas, everyone_owns: bool, chunk_size: int | None
):
    shapes = [(7, 4), (4, 9), (4, 4), (2, 3), (7, 4)]  # two rows over three ranks: one has none
    matrices = [rows_over(shape, replicas) for shape in shapes]
    costs = [rows * columns for rows, columns in shapes]
    plan = make_plan(matrices, replicas, costs, chunk_size, everyone_owns)
    assert sorted(itertools.chain(*plan.chunks)) == list(range(len(shapes)))
    for chunk in plan.chunks:
        gathered, scattered = plan.gathers(chunk), plan.scatters(chunk)
        for rank in plan.ranks:  # a rank that asks for itself learns the same of itself
            for mine, everyones in (
                (plan.gathers(chunk, rank), gathered),
                (plan.scatters(chunk, rank), scattered),
            ):
                assert mine == {pair: p for pair, p in everyones.items() if rank in pair}
        for matrix in chunk:
            shape = shapes[matrix]
            for owner in plan.owners[matrix]:
                (replica,) = [set(replica) for replica in replicas if owner in replica]
                covered = 0
                for (sender, receiver), parts in gathered.items():
                    if receiver == owner:
                        assert sender in replica
                        covered += sum(p.region.size for p in parts if p.matrix == matrix)
                assert covered == shape[0] * shape[1]
            for rank in plan.ranks:
                got = [
                    part.region
                    for (sender, receiver), parts in scattered.items()
                    for part in parts
                    if receiver == rank and part.matrix == matrix and sender in plan.owners[matrix]
                ]
                wanted = matrices[matrix].regions[rank]
                assert got == ([wanted] if wanted.size else [])
        if everyone_owns:
            assert all(sender == receiver for sender, receiver in scattered)


def test_every_owner_has_work_in_every_chunk():
    replicas = [list(range(8))]
    plan = make_plan(*large_model(replicas)[:1], replicas, large_model(replicas)[1])
    assert [len(chunk) for chunk in plan.chunks] == [32] * 8 + [24]
    for chunk in plan.chunks[:-1]:
        owners = [plan.owners[matrix][0] for matrix in chunk]
        assert sorted(set(owners)) == list(range(8))


def test_plans_differ_where_the_layout_does():
    one, other = [[0, 1]], [[0, 1, 2]]
    shapes = [(4, 4), (6, 4)]
    plans = [make_plan([rows_over(s, r) for s in shapes], r, [1, 2]) for r in (one, one, other)]
    assert plans[0].digest() == plans[1].digest() != plans[2].digest()
    with pytest.raises(ValueError, match="chunk_size is 0; at least 1 is needed"):
        make_plan([], one, [], chunk_size=0)


@pytest.mark.parametrize(("num_ranks", "gigabytes"), [(8, 4.77), (64, 0.70)])
def test_bytes_of_the_large_model_are_those_counted_by_hand(num_ranks: int, gigabytes: float):
    """Seven eighths of 10.9B parameters of two bytes, sent and back, over eight ranks."""
    replicas = [list(range(num_ranks))]
    matrices, costs = large_model(replicas)
    found = predict(make_plan(matrices, replicas, costs), costs, Rates())
    assert found.bytes_per_rank / 1e9 == pytest.approx(gigabytes, abs=0.01)
    assert found.max_over_mean <= 1.02


def test_the_schedule_hides_the_shorter_of_compute_and_exchange():
    replicas = [[0, 1]]
    matrices = [rows_over((4, 4), replicas) for _ in range(4)]
    plan = make_plan(matrices, replicas, [10] * 4, chunk_size=2)
    rates = Rates(flops=10, bytes_in_node=8, bytes_between_nodes=1)
    # A chunk takes 1 s; each rank sends half a matrix (16 bytes) and gets one, 2 s each way.
    found = predict(plan, [10] * 4, rates)
    assert found.compute_ms == 2000
    assert found.exchange_ms == 8000
    assert found.total_ms == 1000 * (2 + max(1, 2) + max(1, 2) + 2)
    far = Rates(flops=10, bytes_in_node=8, bytes_between_nodes=1, ranks_per_node=1)
    assert predict(plan, [10] * 4, far).exchange_ms == 8 * 8000


def test_owner_scope_weighs_repeated_work_against_bytes():
    replicas = [list(range(8 * index, 8 * index + 8)) for index in range(10)]
    matrices, costs = large_model(replicas)
    assert scopes_of(10) == [1, 2, 5, 10]
    assert fastest_scope(matrices, replicas, costs, Rates()) == 2
    slow_network = Rates(bytes_between_nodes=1e9)
    assert fastest_scope(matrices, replicas, costs, slow_network) == 1
    fast_network = Rates(bytes_between_nodes=1e15, bytes_in_node=1e15)
    assert fastest_scope(matrices, replicas, costs, fast_network) == 10
    with pytest.raises(ValueError, match="owner_scope is 3; one of 1, 2, 5, 10 is needed"):
        groups_of_replicas(replicas, 3)
