"""Who orthogonalises which matrix: plain data, computed once, the same on every rank."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from titan_motif.components.muon.coefficients import GRAM_RESTARTS, Method


class Region(NamedTuple):
    """A rectangle of a matrix: rows and columns, each from one index to before another."""

    row_begin: int
    row_end: int
    column_begin: int
    column_end: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.row_end - self.row_begin, self.column_end - self.column_begin

    @property
    def size(self) -> int:
        rows, columns = self.shape
        return rows * columns

    def of(self, matrix: Any) -> Any:
        """Return this region's view of a whole matrix."""
        return matrix[self.row_begin : self.row_end, self.column_begin : self.column_end]


@dataclass(frozen=True)
class Matrix:
    """A parameter of Muon's, and which part of it each rank holds."""

    rows: int
    columns: int
    regions: Mapping[int, Region]
    """By rank; ranks of different replicas hold equal regions."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns


class Part(NamedTuple):
    """What one rank sends to another of one matrix."""

    matrix: int
    region: Region


Transfers = dict[tuple[int, int], list[Part]]
"""By (sender, receiver), in the order of the chunk; a rank's own parts are among them."""


@dataclass(frozen=True)
class Plan:
    """Who orthogonalises what among the ranks that exchange with each other, and in which order.

    A matrix has one owner, or several, each of which repeats the work: every rank in the report's
    Distributed Muon. An owner gathers a matrix from the ranks of its own replica, and serves every
    rank that is no owner itself.
    """

    matrices: tuple[Matrix, ...]
    replicas: tuple[tuple[int, ...], ...]
    """Ranks that exchange, by replica: those of one hold every matrix between them."""
    owners: tuple[tuple[int, ...], ...]
    """Of each matrix, the ranks that orthogonalise it."""
    chunks: tuple[tuple[int, ...], ...]
    """Matrices that are exchanged together, the most expensive first."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks that exchange, ascending, as a process group orders them."""
        return tuple(sorted(rank for replica in self.replicas for rank in replica))

    @property
    def everyone_owns(self) -> bool:
        """Whether every rank owns every matrix, so that no result has to travel."""
        return all(owners == self.ranks for owners in self.owners)

    def gathers(self, chunk: Sequence[int], rank: int | None = None) -> Transfers:
        """Return what is sent to owners; of one rank alone if it is named."""
        found: Transfers = defaultdict(list)
        for matrix in chunk:
            for replica in self.replicas:
                owners = [owner for owner in self.owners[matrix] if owner in replica]
                holders = self._holders(matrix, replica) if owners else {}
                for owner in owners:
                    own = self.matrices[matrix].regions.get(rank)
                    # Another owner gets from a rank what that rank holds, and no more.
                    regions = holders if rank in (None, owner) else holders.keys() & {own}
                    for region in regions:
                        ranks = holders[region]
                        sender = owner if owner in ranks else ranks[matrix % len(ranks)]
                        if rank in (None, sender, owner):
                            found[sender, owner].append(Part(matrix, region))
        return found

    def scatters(self, chunk: Sequence[int], rank: int | None = None) -> Transfers:
        """Return what owners send back; of one rank alone if it is named."""
        found: Transfers = defaultdict(list)
        for matrix in chunk:
            owners = self.owners[matrix]
            for receiver in self.ranks:
                region = self.matrices[matrix].regions[receiver]
                sender = receiver if receiver in owners else owners[0]
                if region.size and rank in (None, sender, receiver):
                    found[sender, receiver].append(Part(matrix, region))
        return found

    def _holders(self, matrix: int, replica: Sequence[int]) -> dict[Region, list[int]]:
        """Return the ranks of a replica that hold each region of a matrix, empty ones left out."""
        holders: dict[Region, list[int]] = {}
        for rank in replica:
            region = self.matrices[matrix].regions[rank]
            if region.size:
                holders.setdefault(region, []).append(rank)
        return holders

    def digest(self) -> str:
        """Return a hash by which ranks see whether they have the same plan."""
        shapes = [(m.shape, sorted(m.regions.items())) for m in self.matrices]
        content = (shapes, self.replicas, self.owners, self.chunks)
        return hashlib.sha256(repr(content).encode()).hexdigest()


def make_plan(
    matrices: Sequence[Matrix],
    replicas: Sequence[Sequence[int]],
    costs: Sequence[int],
    chunk_size: int | None = None,
    everyone_owns: bool = False,
) -> Plan:
    """Return the plan of the ranks that exchange with each other.

    Args:
        replicas:      those ranks, by replica
        costs:         of each matrix, in any unit
        chunk_size:    matrices in a chunk; None means four for each rank, as in the report
        everyone_owns: every rank gathers everything and repeats the work (Distributed Muon)
    Raises: ValueError for a chunk size below one
    """
    ranks = sorted(rank for replica in replicas for rank in replica)
    chunk_size = 4 * len(ranks) if chunk_size is None else chunk_size
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; at least 1 is needed")
    by_cost = sorted(range(len(matrices)), key=lambda i: (-costs[i], matrices[i].shape, i))
    if everyone_owns:
        owners, order = [tuple(ranks)] * len(matrices), by_cost
    else:
        owner_of = [ranks[owner] for owner in assign_owners(costs, len(ranks))]
        owners = [(owner,) for owner in owner_of]
        order = _by_turns(by_cost, owner_of)
    starts = range(0, len(order), chunk_size)
    chunks = tuple(tuple(order[start : start + chunk_size]) for start in starts)
    return Plan(tuple(matrices), tuple(map(tuple, replicas)), tuple(owners), chunks)


def _by_turns(matrices: Sequence[int], owner_of: Sequence[int]) -> list[int]:
    """Order matrices such that each owner's first come first, then each owner's second, ...

    So every owner has work in every chunk, and of a chunk about as much as the others.
    """
    turn = dict.fromkeys(owner_of, 0)
    turns: list[tuple[int, int]] = []
    for matrix in matrices:
        turns.append((turn[owner_of[matrix]], matrix))
        turn[owner_of[matrix]] += 1
    return [matrix for _, matrix in sorted(turns, key=lambda entry: entry[0])]


GRAM_TILE, GRAM_DEPTH, GRAM_TILES = 128, 64, 528
"""What fast symmetric products on a GPU need: both dimensions in whole tiles of a product, and so
many of its tiles below the diagonal: four for each of an H200's cores, as one 4096 x 4096 matrix or
four of 2048 x 2048 have. Milliseconds of a batch on one H200, bfloat16 in and out, plain direct
form / Gram form: 5 of 5120 x 4096 18.7 / 11.5, 5 of 4096 x 8192 26.0 / 14.6, 10 of 16384 x 4096
99.8 / 43.7, 5 of 4096 x 16384 47.5 / 20.7, 10 of 2048 x 4096 7.15 / 4.02. One of 2048 x 4096 has a
quarter of the tiles, and takes the plain form."""


def has_fast_products(rows: int, columns: int, batch: int = 1) -> bool:
    """Return whether a batch's symmetric products fill a GPU and its tiles."""
    m, n = sorted((rows, columns))
    tiles = m // GRAM_TILE
    return m % GRAM_TILE == n % GRAM_DEPTH == 0 and batch * tiles * (tiles + 1) // 2 >= GRAM_TILES


def choose_method(
    rows: int, columns: int, batch: int = 1, is_gpu: bool = True
) -> Literal["direct", "gram"]:
    """Return what method 'auto' of Newton-Schulz takes for a batch of matrices of one shape.

    On a GPU the Gram form where it was measured to be faster. On a CPU the direct form: bfloat16
    products have instructions of their own there and float16's, which the Gram form needs, crawl
    (four matrices of 160 x 448 on one core with AVX-512 BF16: 9.9 ms and 168 ms).
    """
    return "gram" if is_gpu and has_fast_products(rows, columns, batch) else "direct"


def newton_schulz_flops(
    rows: int,
    columns: int,
    num_steps: int,
    method: Method,
    restarts: tuple[int, ...] = GRAM_RESTARTS,
    is_symmetric: bool = True,
) -> int:
    """Return the floating-point operations that orthogonalising a matrix takes.

    Args:
        method:       'auto' as on a GPU, for a matrix among many of its shape
        restarts:     of the Gram form, as `orthogonalize` takes them
        is_symmetric: whether of a symmetric product only half is computed
    """
    m, n = sorted((rows, columns))
    if method == "auto":
        method = choose_method(m, n, batch=GRAM_TILES)
    symmetric, full = (1, 2) if is_symmetric else (2, 2)
    if method == "direct":  # X X^T, (X X^T)^2, and p X
        return num_steps * (symmetric * m * m * n + symmetric * m**3 + full * m * m * n)
    starts = {0, *(step for step in restarts if 0 < step < num_steps)}
    num_squares = num_steps
    num_products_onto_q = num_steps - len(starts)
    num_updates_of_r = num_steps - len(starts)  # R <- p R p, but not where R is formed anew
    small = num_squares + num_products_onto_q + 2 * num_updates_of_r
    return len(starts) * (symmetric + full) * m * m * n + small * symmetric * m**3


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
