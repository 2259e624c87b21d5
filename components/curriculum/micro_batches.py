"""Which sequences of a step a rank takes, and its micro-batches by their number.

Step i takes the plan's sequences of that step: rank r of d takes, as its k-th micro-batch of B
rows, the sequences (k d + r) B to (k d + r + 1) B of the step. Where ranks and rows do not divide a
batch, rows at its end repeat the last sequence with labels that do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from torchtitan.components.loss import IGNORE_INDEX

from titan_motif.components.curriculum.order import Block, GlobalOrder
from titan_motif.components.curriculum.schedule import BLOCK, RunPlan, Step
from titan_motif.components.curriculum.sources import TokenStream


class PackedSequence(NamedTuple):
    """One packed sequence of the run."""

    number: int
    source: int
    cursor: int
    """Where in the source's stream it begins."""
    seq_len: int


class SequenceReader:
    """The sequences of a run by their number; fast where the numbers grow."""

    def __init__(self, order: GlobalOrder, streams: Sequence[TokenStream]) -> None:
        self.order, self.streams = order, streams
        self._index, self._block = -1, Block(*(np.empty(0, dtype=np.int64),) * 4)

    def find(self, number: int) -> PackedSequence:
        """Return where the sequence of a number is read."""
        index, place = divmod(number, BLOCK)
        if index != self._index:
            follows = index == self._index + 1 and self._index >= 0
            cursors = self._block.after if follows else None
            self._index, self._block = index, self.order.block(index, cursors)
        block = self._block
        return PackedSequence(
            number, int(block.sources[place]), int(block.cursors[place]), int(block.lengths[place])
        )

    def read(self, number: int) -> np.ndarray:  # (2 or 3, seq_len) int64
        """Return a sequence's tokens, labels, and of packed samples the documents."""
        found = self.find(number)
        return self.streams[found.source].read(found.cursor, found.seq_len)


@dataclass(frozen=True)
class Share:
    """What one data-parallel rank takes of every step."""

    rank: int
    ranks: int
    local_batch_tokens: int = -1
    """Of a micro-batch; -1 is one micro-batch a step."""

    def rows(self, step: Step) -> int:
        """Return the sequences of a rank's micro-batch."""
        if self.local_batch_tokens == -1:
            return -(-step.num_sequences // self.ranks)
        return max(self.local_batch_tokens // step.seq_len, 1)

    def micro_batches(self, step: Step) -> int:
        """Return how many micro-batches every rank takes in a step."""
        return -(-step.num_sequences // (self.ranks * self.rows(step)))

    def all_micro_batches(self, plan: RunPlan) -> np.ndarray:
        """Return `micro_batches` of every step of a plan."""
        sizes = np.diff(plan.first_sequence)
        if self.local_batch_tokens == -1:
            return np.ones_like(sizes)
        rows = np.maximum(self.local_batch_tokens // (np.diff(plan.tokens) // sizes), 1)
        return -(-sizes // (self.ranks * rows))

    def filling_rows(self, step: Step) -> int:
        """Return the rows of all ranks that hold nothing new."""
        return self.ranks * self.rows(step) * self.micro_batches(step) - step.num_sequences

    def numbers(self, step: Step, micro_batch: int) -> range:
        """Return this rank's sequences of a micro-batch, some of them beyond the step's."""
        rows = self.rows(step)
        first = step.first_sequence + (micro_batch * self.ranks + self.rank) * rows
        return range(first, first + rows)


class MicroBatches(Dataset):
    """One rank's micro-batches from a step on, by their number: (2 or 3, batch, seq).

    The rows of TokenStream.read: tokens, labels, and of packed samples the documents.

    Arrays of 32 bits, which workers send through a pipe: four rows of 4096 arrive at 43 million
    tokens/s, as tensors in shared memory, with its files and page faults, at 6 to 10 (2 cores).
    """

    def __init__(
        self,
        plan: RunPlan,
        reader: SequenceReader,
        share: Share,
        first_step: int,
    ) -> None:
        self.plan, self.reader, self.share, self.first_step = plan, reader, share, first_step
        self.ends = np.cumsum(share.all_micro_batches(plan)[first_step:])
        """Micro-batches at the end of each step."""

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def place(self, k: int) -> tuple[Step, int]:
        """Return the step of a micro-batch, and its number in the step."""
        passed = int(np.searchsorted(self.ends, k, side="right"))
        step = self.plan.step(self.first_step + passed)
        return step, k - (int(self.ends[passed - 1]) if passed else 0)

    def __getitem__(self, k: int) -> np.ndarray:
        step, micro_batch = self.place(k)
        end = step.first_sequence + step.num_sequences
        numbers = self.share.numbers(step, micro_batch)
        num_rows = self.reader.streams[0].num_rows
        batch = np.empty((num_rows, len(numbers), step.seq_len), dtype=np.int32)
        for row, number in enumerate(numbers):
            batch[:, row] = self.reader.read(min(number, end - 1))
            if number >= end:
                batch[1, row] = IGNORE_INDEX
        return batch
