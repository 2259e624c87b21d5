"""Prepared tokens as packed sequences in one global order, on any number of ranks and workers.

The n-th sequence of a run depends on (seed, n) alone. Rank r of d takes, as its k-th micro-batch of
B sequences, the sequences (k d + r) B to (k d + r + 1) B: whatever d is, a global batch holds the
same sequences. So the whole state is one number, how many sequences all ranks consumed together.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX

from titan_motif.kernels import documents_of

Batch = tuple[dict[str, Tensor], Tensor]
"""({"input": (batch, seq)}, labels (batch, seq)), int64; a label is the token after its input.
With documents, the inputs have "document_ids" (batch, seq), and "positions" where those restart."""


class DocumentInputs(NamedTuple):
    """What the model is told of documents besides the tokens."""

    separator: int
    """The token that a document ends with."""
    restart_positions: bool
    """Whether positions count from the beginning of each document."""

    def of(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the inputs that go with tokens (batch, seq)."""
        is_separator = (tokens == self.separator).int()
        ids = is_separator.cumsum(1) - is_separator
        if not self.restart_positions:
            return {"document_ids": ids}
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return {"document_ids": ids, "positions": positions - documents_of(ids).first}


def collate(
    rows: Iterable[tuple[Tensor, Tensor]], documents: DocumentInputs | None = None
) -> Batch:
    """Return a micro-batch of (tokens, labels) rows."""
    inputs, labels = map(torch.stack, zip(*rows, strict=True))
    more = {} if documents is None else documents.of(inputs)
    return {"input": inputs, **more}, labels


class PackedTokens:
    """A folder's tokens, one after the other, cut into sequences of equal length.

    Raises: ValueError if the folder has no tokens.npy, if that is no row of integers, or if it is
            too short for one sequence
    """

    def __init__(self, folder: str | Path, seq_len: int) -> None:
        path = Path(folder) / "tokens.npy"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; a prepared split holds tokens.npy")
        try:
            self.tokens = np.load(path, mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read as an array: {error}") from None
        if self.tokens.ndim != 1 or self.tokens.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: {self.tokens.ndim}-D of {self.tokens.dtype}; a 1-D array of integers is "
                "needed"
            )
        self.seq_len = seq_len
        # The last label of a sequence is the first input of the next one.
        self.num_sequences = (len(self.tokens) - 1) // seq_len
        if self.num_sequences < 1:
            raise ValueError(f"{path}: {len(self.tokens)} tokens; one sequence needs {seq_len + 1}")

    def sampled_range(self) -> tuple[int, int]:
        """Return the least and the largest id among up to 4 million tokens.

        A file of no more is read whole, of a larger one 64 windows, spaced evenly from its first
        token to its last: 16 MB at most, however large the file.
        """
        num_windows, length = 64, 2**16
        if len(self.tokens) <= num_windows * length:
            return int(self.tokens.min()), int(self.tokens.max())
        begins = np.linspace(0, len(self.tokens) - length, num_windows, dtype=np.int64)
        windows = [self.tokens[begin : begin + length] for begin in begins]
        return min(int(w.min()) for w in windows), max(int(w.max()) for w in windows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return (inputs, labels) of the index-th sequence as it lies in the file."""
        begin = index * self.seq_len
        window = self.tokens[begin : begin + self.seq_len + 1].astype(np.int64)
        return torch.from_numpy(window[:-1]), torch.from_numpy(window[1:])


class GlobalOrder:
    """The order in which a run reads its sequences: each epoch is shuffled by (seed, epoch)."""

    def __init__(self, num_sequences: int, seed: int) -> None:
        self.num_sequences, self.seed = num_sequences, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, n: int) -> int:
        """Return which sequence is the n-th of the run."""
        epoch, place = divmod(n, self.num_sequences)
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._epoch, self._permutation = epoch, generator.permutation(self.num_sequences)
        return int(self._permutation[place])


class _MicroBatches(Dataset):
    """One rank's micro-batches after `start` sequences, by their number, without end."""

    def __init__(
        self,
        tokens: PackedTokens,
        seed: int,
        start: int,
        batch_size: int,
        rank: int,
        ranks: int,
        documents: DocumentInputs | None,
    ) -> None:
        self.tokens = tokens
        self.order = GlobalOrder(tokens.num_sequences, seed)
        self.start, self.batch_size, self.rank, self.ranks = start, batch_size, rank, ranks
        self.documents = documents

    def __getitem__(self, k: int) -> Batch:
        first = self.start + (k * self.ranks + self.rank) * self.batch_size
        rows = [self.tokens[self.order[n]] for n in range(first, first + self.batch_size)]
        return collate(rows, self.documents)


class _CountUp(torch.utils.data.Sampler):
    """0, 1, 2, ...: a run ends by its steps, never by its data."""

    def __iter__(self) -> Iterator[int]:
        k = 0
        while True:
            yield k
            k += 1


class StatefulTokenLoader(BaseDataLoader):
    """The loader of a training split.

    torchdata's StatefulDataLoader runs the workers, but its state, which is bound to the number of
    workers, is never saved: a resumed run starts new workers at the sequence it had come to.
    """

    def __init__(
        self,
        tokens: PackedTokens,
        local_batch_size: int,
        seed: int,
        dp_rank: int,
        dp_world_size: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        documents: DocumentInputs | None = None,
    ) -> None:
        self.tokens, self.seed, self.documents = tokens, seed, documents
        self.local_batch_size, self.dp_rank, self.dp_world_size = (
            local_batch_size,
            dp_rank,
            dp_world_size,
        )
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.prefetch_factor = prefetch_factor
        self.next_sequence = 0

    def __iter__(self) -> Iterator[Batch]:
        batches = _MicroBatches(
            self.tokens,
            self.seed,
            self.next_sequence,
            self.local_batch_size,
            self.dp_rank,
            self.dp_world_size,
            self.documents,
        )
        workers = StatefulDataLoader(
            batches,
            batch_size=None,
            sampler=_CountUp(),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch_factor,
        )
        for batch in workers:
            # Counted when handed out: what workers have read ahead is not consumed.
            self.next_sequence += self.local_batch_size * self.dp_world_size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the global order, the same on every rank."""
        return {
            "next_sequence": self.next_sequence,
            "seed": self.seed,
            "seq_len": self.tokens.seq_len,
            "num_sequences": self.tokens.num_sequences,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stopped, on any number of ranks and workers.

        Raises: ValueError if the saved order is not this one (seed, length or corpus differ)
        """
        if not state_dict:
            return
        for name, here in self.state_dict().items():
            if name != "next_sequence" and state_dict[name] != here:
                raise ValueError(
                    f"the data loader's {name} is {here}; the checkpoint was made with "
                    f"{state_dict[name]}, and its position means nothing in another order"
                )
        self.next_sequence = state_dict["next_sequence"]


class ValidationSequences:
    """The sequences of a held-out split in file order, dealt to the ranks in micro-batches.

    Every rank yields the same number of micro-batches, since a sharded model needs all ranks in
    each; what lies past the end is filled with labels that do not count. With `max_batches` -1 the
    ranks together see each sequence of the split once; otherwise the first
    max_batches * dp_world_size * local_batch_size of them.
    """

    def __init__(
        self,
        folder: str | Path,
        seq_len: int,
        local_batch_size: int,
        dp_rank: int,
        dp_world_size: int,
        max_batches: int = -1,
        documents: DocumentInputs | None = None,
    ) -> None:
        self.tokens, self.documents = PackedTokens(folder, seq_len), documents
        self.local_batch_size, self.dp_rank, self.dp_world_size = (
            local_batch_size,
            dp_rank,
            dp_world_size,
        )
        needed = -(-self.tokens.num_sequences // (local_batch_size * dp_world_size))
        self.num_batches = needed if max_batches == -1 else min(needed, max_batches)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        padding = torch.zeros(self.tokens.seq_len, dtype=torch.int64)
        nothing = torch.full_like(padding, IGNORE_INDEX)
        for k in range(self.num_batches):
            first = (k * self.dp_world_size + self.dp_rank) * self.local_batch_size
            rows = [
                self.tokens[n] if n < self.tokens.num_sequences else (padding, nothing)
                for n in range(first, first + self.local_batch_size)
            ]
            yield collate(rows, self.documents)


def build_loader(
    folder: str | Path,
    seq_len: int,
    local_batch_size: int,
    seed: int,
    dp_rank: int,
    dp_world_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int | None = None,
    documents: DocumentInputs | None = None,
) -> StatefulTokenLoader:
    """Build the loader of one rank over a folder's tokens; ValueError if the folder has none."""
    return StatefulTokenLoader(
        PackedTokens(folder, seq_len),
        local_batch_size,
        seed,
        dp_rank,
        dp_world_size,
        num_workers,
        pin_memory,
        prefetch_factor,
        documents,
    )
