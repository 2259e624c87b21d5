"""The exchange of Parallel Muon: shards to owners, orthogonalised matrices back, chunk by chunk.

A chunk's parts travel in one `all_to_all_single` each way, packed without padding:

    gather 0 | compute 0           | compute 1            | compute 2 ...
             | gather 1            | scatter 0, gather 2  | scatter 1, gather 3 ...

While an owner computes a chunk, the next one is gathered and the last one's results are on their
way. On CUDA the process group has its own stream, and the compute stream waits for it on the
device; on gloo a thread of the backend works while this one computes.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from titan_motif.components.muon.plan import Part, Plan, Transfers

Group = dist.ProcessGroup | None
"""None: this rank alone, nothing is sent."""


@dataclass(frozen=True)
class Packing:
    """What this rank sends and receives in one direction of one chunk, in the order of buffers."""

    sent: tuple[Part, ...]
    received: tuple[Part, ...]
    sent_sizes: tuple[int, ...]
    """Elements for each rank of the group."""
    received_sizes: tuple[int, ...]

    @classmethod
    def of(cls, transfers: Transfers, ranks: Sequence[int], rank: int) -> "Packing":
        """Return what one of the group's ranks sends and receives of a chunk's transfers."""
        sent = [transfers.get((rank, other), []) for other in ranks]
        received = [transfers.get((other, rank), []) for other in ranks]
        return cls(
            sent=tuple(part for parts in sent for part in parts),
            received=tuple(part for parts in received for part in parts),
            sent_sizes=tuple(sum(part.region.size for part in parts) for parts in sent),
            received_sizes=tuple(sum(part.region.size for part in parts) for parts in received),
        )


class Buffers:
    """A buffer to send from and one to receive into, for one direction of one chunk at a time."""

    def __init__(self, packings: Sequence[Packing], dtype: torch.dtype, device: torch.device):
        def new(sizes: Sequence[int]) -> Tensor:
            return torch.empty(max(sizes, default=0), dtype=dtype, device=device)

        self.sent = new([sum(packing.sent_sizes) for packing in packings])
        self.received = new([sum(packing.received_sizes) for packing in packings])

    @property
    def nbytes(self) -> int:
        """Of both buffers."""
        return self.sent.nbytes + self.received.nbytes

    def start(self, packing: Packing, group: Group) -> dist.Work | None:
        """Send what was packed."""
        sent = self.sent[: sum(packing.sent_sizes)]
        received = self.received[: sum(packing.received_sizes)]
        if group is None:
            received.copy_(sent)
            return None
        sizes = list(packing.received_sizes), list(packing.sent_sizes)
        return dist.all_to_all_single(received, sent, *sizes, group=group, async_op=True)


def views(buffer: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    """Return each part's place in a buffer, in the shape of its region."""
    found, start = [], 0
    for part in parts:
        found.append(buffer[start : start + part.region.size].view(part.region.shape))
        start += part.region.size
    return found


class ShardedOrthogonalizer:
    """Runs the chunks of a plan on this rank.

    Args:
        group:       of the plan's ranks
        dtype:       of what travels
        orthogonalize: (batch, rows, columns) -> the same, of matrices of one shape
        is_batched:  whether an owner's matrices of one shape and chunk form a batch
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        group: Group,
        dtype: torch.dtype,
        device: torch.device,
        orthogonalize: Callable[[Tensor], Tensor],
        is_batched: bool = True,
    ) -> None:
        self.plan, self.rank, self.group = plan, rank, group
        self.dtype, self.device = dtype, device
        self.orthogonalize, self.is_batched = orthogonalize, is_batched
        ranks = plan.ranks
        self.gathers, self.scatters = (
            [Packing.of(transfers(chunk, rank), ranks, rank) for chunk in plan.chunks]
            for transfers in (plan.gathers, plan.scatters)
        )
        self.scatter_group = None if plan.everyone_owns else group

    def run(
        self,
        begin: Callable[[int, Tensor | None], None],
        apply: Callable[[int, Tensor], None],
    ) -> None:
        """Exchange and orthogonalise all chunks.

        Args:
            begin: is told each matrix (by number) before its chunk is sent, and writes this rank's
                   part of it into the buffer it is given; None if another rank's copy is sent
            apply: takes this rank's part of a matrix's result; it is overwritten afterwards
        """
        gather = Buffers(self.gathers, self.dtype, self.device)
        scatter = Buffers(self.scatters, self.dtype, self.device)

        def start_gathering(chunk: int) -> dist.Work | None:
            if chunk == len(self.plan.chunks):
                return None
            parts = self.gathers[chunk].sent
            first: dict[int, Tensor] = {}
            copies = []
            for part, view in zip(parts, views(gather.sent, parts), strict=True):
                if first.setdefault(part.matrix, view) is not view:  # for a further owner
                    copies.append((view, first[part.matrix]))
            for matrix in self.plan.chunks[chunk]:
                begin(matrix, first.get(matrix))
            for view, source in copies:
                view.copy_(source)
            return gather.start(self.gathers[chunk], self.group)

        work, on_its_way = start_gathering(0), None
        for chunk in range(len(self.plan.chunks)):
            _wait(work)
            batches = self._assemble(self.gathers[chunk], gather)
            work = start_gathering(chunk + 1)
            results = self._compute(batches)
            if chunk > 0:
                _wait(on_its_way)
                self._apply(chunk - 1, scatter, apply)
            packing = self.scatters[chunk]
            for part, view in zip(packing.sent, views(scatter.sent, packing.sent), strict=True):
                view.copy_(part.region.of(results[part.matrix]))
            del results  # before the next chunk is assembled
            on_its_way = scatter.start(packing, self.scatter_group)
        if self.plan.chunks:
            _wait(on_its_way)
            self._apply(len(self.plan.chunks) - 1, scatter, apply)

    def _assemble(self, packing: Packing, buffers: Buffers) -> list[tuple[list[int], Tensor]]:
        """Return this rank's matrices of a chunk in batches of one shape, with their numbers."""
        numbers = list(dict.fromkeys(part.matrix for part in packing.received))
        by_shape: dict[object, list[int]] = defaultdict(list)
        for number in sorted(numbers):
            shape = self.plan.matrices[number].shape
            by_shape[shape if self.is_batched else number].append(number)
        batches, place = [], {}
        for members in by_shape.values():
            shape = self.plan.matrices[members[0]].shape
            batch = torch.empty(len(members), *shape, dtype=self.dtype, device=self.device)
            batches.append((members, batch))
            place.update(zip(members, batch, strict=True))
        parts = zip(packing.received, views(buffers.received, packing.received), strict=True)
        for part, view in parts:
            part.region.of(place[part.matrix]).copy_(view)
        return batches

    def _compute(self, batches: list[tuple[list[int], Tensor]]) -> dict[int, Tensor]:
        results: dict[int, Tensor] = {}
        while batches:  # a batch is let go when its results are there
            numbers, batch = batches.pop()
            results.update(zip(numbers, self.orthogonalize(batch), strict=True))
            del batch
        return results

    def _apply(self, chunk: int, buffers: Buffers, apply: Callable[[int, Tensor], None]) -> None:
        packing = self.scatters[chunk]
        parts = zip(packing.received, views(buffers.received, packing.received), strict=True)
        for part, view in parts:
            apply(part.matrix, view)


def group_of(ranks: Sequence[int], parameter: Tensor) -> Group:
    """Return a process group of ranks that exchange; only they call this.

    A group of the parameter's mesh serves where it has these ranks: another one costs memory.
    """
    if len(ranks) == 1:
        return None
    if list(ranks) == list(range(dist.get_world_size())):
        return dist.group.WORLD
    for group in parameter.device_mesh.get_all_groups():
        if sorted(dist.get_process_group_ranks(group)) == list(ranks):
            return group
    # With the job's own limit: a new group would have PyTorch's default.
    timeout = dist.group.WORLD._get_backend(parameter.device).options._timeout
    return dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)


def check_same_plan(plan: Plan, group: Group, device: torch.device) -> None:
    """Raise RuntimeError, on all ranks of the group, unless all have made the same plan."""
    if group is None:
        return
    digest = int(plan.digest()[:15], 16)
    ends = torch.tensor([digest, -digest], device=device)
    dist.all_reduce(ends, dist.ReduceOp.MAX, group=group)
    if ends[0] != -ends[1]:
        raise RuntimeError("ranks have made different plans of who orthogonalises which matrix")


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()
