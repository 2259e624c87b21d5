"""The plan of Parallel Muon: costs by the known totals, owners by their balance."""

import itertools
import random

import pytest

import titan_motif.device  # noqa: F401
from titan_motif.components.muon.plan import assign_owners, newton_schulz_flops

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
