"""Who orthogonalises which matrix: plain data, computed once, the same on every rank."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from titan_motif.components.muon.owners import assign_owners


class Region(NamedTuple):
    """A rectangle of a matrix: rows and columns, each from one index to before another."""

    row_begin: int
    row_end: int
    column_begin: int
    column_end: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the piece."""
        return self.row_end - self.row_begin, self.column_end - self.column_begin

    @property
    def size(self) -> int:
        """Elements of it."""
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
        """(rows, columns)."""
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
