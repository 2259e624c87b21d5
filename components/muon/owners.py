"""Items dealt to owners such that the one who has most to do has as little as can be."""

import heapq
from collections.abc import Sequence


def assign_owners(costs: Sequence[int], num_owners: int) -> list[int]:
    """Return the owner of each item, such that no move or swap lowers the largest load.

    Longest processing time first, then the best move of one item or swap of two that takes load
    off the fullest owner, until there is none. Ties go to the lowest number, so that every rank
    that computes this computes the same.
    """
    if num_owners < 1:
        raise ValueError(f"{num_owners} owners; at least 1 is needed")
    owned: list[set[int]] = [set() for _ in range(num_owners)]
    heap = [(0, owner) for owner in range(num_owners)]
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        load, owner = heapq.heappop(heap)
        owned[owner].add(item)
        heapq.heappush(heap, (load + costs[item], owner))
    loads = [sum(costs[item] for item in items) for items in owned]
    while change := _best_change(costs, owned, loads):
        _, item, fullest, other, given_back = change
        for moved, source, target in ((item, fullest, other), (given_back, other, fullest)):
            if moved is not None:
                owned[source].remove(moved)
                owned[target].add(moved)
                loads[source] -= costs[moved]
                loads[target] += costs[moved]
    owners = [0] * len(costs)
    for owner, items in enumerate(owned):
        for item in items:
            owners[item] = owner
    return owners


def _best_change(
    costs: Sequence[int], owned: list[set[int]], loads: list[int]
) -> tuple[int, int, int, int, int | None] | None:
    """Return the change that leaves the lower of the fullest owner's and its partner's larger load.

    (that load, item, fullest owner, partner, item given back or None); None if all raise it
    """
    fullest = max(range(len(loads)), key=lambda owner: (loads[owner], -owner))
    best = None
    for other, items in enumerate(owned):
        if other == fullest:
            continue
        # Of items of one cost the first stands for all.
        returns = {costs[item]: item for item in sorted(items, reverse=True)}
        for item in {costs[item]: item for item in sorted(owned[fullest], reverse=True)}.values():
            for cost, given_back in ((0, None), *returns.items()):
                moved = costs[item] - cost
                larger = max(loads[fullest] - moved, loads[other] + moved)
                if moved > 0 and larger < (best[0] if best else loads[fullest]):
                    best = larger, item, fullest, other, given_back
    return best
