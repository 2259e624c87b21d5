"""The micro-batches of one rank, in the run's one global order, on any number of ranks and workers.

Step i takes the plan's sequences of that step: rank r of d takes, as its k-th micro-batch of B
rows, the sequences (k d + r) B to (k d + r + 1) B of the step. Where ranks and rows do not divide a
batch, rows at its end repeat the last sequence with labels that do not count. So the whole state is
one number, how many sequences all ranks consumed together; what is saved beside it, the position in
every source, tells whether another job's past was the same.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX

from titan_motif.components.curriculum.order import Block, GlobalOrder
from titan_motif.components.curriculum.schedule import BLOCK, RunPlan, Step
from titan_motif.components.curriculum.sources import TokenStream
from titan_motif.kernels import documents_of

Batch = tuple[dict[str, Tensor], Tensor]
"""({"input": (batch, seq)}, labels (batch, seq)), int64; a label is the token after its input.
With documents, the inputs have "document_ids" (batch, seq), and "positions" where those restart."""


class LoaderError(RuntimeError):
    """A loader's worker died or failed; one line that says what it read."""


class DocumentInputs(NamedTuple):
    """What the model is told of documents besides the tokens.

    Packed samples are told apart by their source; elsewhere the separator ends a document.
    """

    separator: int
    """The token that a document ends with."""
    restart_positions: bool
    """Whether positions count from the beginning of each document."""

    def of(self, tokens: Tensor, ids: Tensor | None = None) -> dict[str, Tensor]:
        """Return the inputs that go with tokens (batch, seq), whose documents may be known."""
        if ids is None:
            is_separator = (tokens == self.separator).int()
            ids = is_separator.cumsum(1) - is_separator
        if not self.restart_positions:
            return {"document_ids": ids}
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return {"document_ids": ids, "positions": positions - documents_of(ids).first}


def collate(rows: Iterable[Sequence[Tensor]], documents: DocumentInputs | None = None) -> Batch:
    """Return a micro-batch of rows: tokens, labels, and of packed samples the documents."""
    inputs, labels, *ids = map(torch.stack, zip(*rows, strict=True))
    more = {} if documents is None else documents.of(inputs, *ids)
    return {"input": inputs, **more}, labels


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


class _MicroBatches(Dataset):
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


def _as_it_is(batch: np.ndarray) -> np.ndarray:
    return batch


class CurriculumLoader(BaseDataLoader):
    """The loader of a training run.

    torchdata's StatefulDataLoader runs the workers, but its state, which is bound to the number of
    workers, is never saved: a resumed run starts new workers at the step it had come to.

    Args:
        sources:   (name, group, share within its group) of every stream, those of a group together
        documents: what the model is told of them
        workers:   arguments of StatefulDataLoader, such as num_workers and prefetch_factor
        pins:      whether the tensors lie in memory that a GPU copies from directly
    """

    def __init__(
        self,
        plan: RunPlan,
        sources: Sequence[tuple[str, str, float]],
        streams: Sequence[TokenStream],
        seed: int,
        share: Share,
        documents: DocumentInputs | None = None,
        workers: dict[str, Any] | None = None,
        pins: bool = False,
    ) -> None:
        packed = [stream.name for stream in streams if stream.file.is_packed]
        if packed and len(packed) < len(streams):
            other = next(stream.name for stream in streams if not stream.file.is_packed)
            raise ValueError(
                f"{packed[0]} holds packed samples, and {other} does not; a run reads one or other"
            )
        self.pins = pins
        self.plan, self.sources, self.streams, self.seed = plan, sources, streams, seed
        self.share, self.documents, self.workers = share, documents, workers or {}
        self.order = GlobalOrder(plan, sources, seed)
        self.next_step = 0
        self._micro_batch = 0

    def __iter__(self) -> Iterator[Batch]:
        batches = _MicroBatches(
            self.plan,
            SequenceReader(self.order, self.streams),
            self.share,
            self.next_step,
        )
        workers = iter(
            StatefulDataLoader(
                batches,
                batch_size=None,
                sampler=range(len(batches)),
                collate_fn=_as_it_is,
                snapshot_every_n_steps=max(len(batches), 1),  # its own state is never asked for
                **self.workers,
            )
        )
        while True:
            try:
                batch = next(workers, None)
            except Exception as error:
                raise self.failure(error) from error
            if batch is None:
                return
            tokens = torch.from_numpy(batch).long()
            inputs, labels, *ids = tokens.pin_memory() if self.pins else tokens
            more = {} if self.documents is None else self.documents.of(inputs, *ids)
            # Counted when handed out: what workers have read ahead is not consumed.
            self._micro_batch += 1
            if self._micro_batch == self.share.micro_batches(self.plan.step(self.next_step)):
                self.next_step, self._micro_batch = self.next_step + 1, 0
            yield {"input": inputs, **more}, labels

    @property
    def next_sequence(self) -> int:
        """Sequences that the steps before the next one took."""
        return int(self.plan.first_sequence[self.next_step])

    def failure(self, error: Exception) -> LoaderError:
        """Return what to tell of a worker's death or failure."""
        step = self.plan.step(min(self.next_step, self.plan.num_steps - 1))
        counts = self.order.counts(step.first_sequence, step.first_sequence + step.num_sequences)
        names = ", ".join(
            name for (name, *_), count in zip(self.sources, counts, strict=True) if count
        )
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        return LoaderError(
            f"reading step {self.next_step + 1} failed on rank {self.share.rank}, which reads the "
            f"sources {names}: {reason}; started again, the run goes on from its last checkpoint"
        )

    def report(self, begin_step: int, end_step: int) -> dict[str, float]:
        """Return figures about the steps between two counts of steps, for TensorBoard."""
        steps = [self.plan.step(i) for i in range(begin_step, min(end_step, self.plan.num_steps))]
        if not steps:
            return {}
        first, end = steps[0].first_sequence, steps[-1].first_sequence + steps[-1].num_sequences
        counts = self.order.counts(first, end)
        filled = sum(self.share.filling_rows(step) * step.seq_len for step in steps)
        figures = {
            "data/tokens_seen": float(self.plan.tokens_at(end_step)),
            "data/seq_len": float(steps[-1].seq_len),
            "data/batch_tokens": float(steps[-1].tokens),
            "data/padding": filled / (filled + sum(step.tokens for step in steps)),
        }
        planned = self.plan.weights(end_step - 1)
        for group in dict.fromkeys(self.order.groups):
            mine = [count for count, g in zip(counts, self.order.groups, strict=True) if g == group]
            figures[f"mixture/{group}"] = float(sum(mine) / (end - first))
            figures[f"mixture_planned/{group}"] = planned.get(group, 0.0)
        for stream, cursor in zip(self.streams, self.order.cursors(end), strict=True):
            figures[f"epoch/{stream.name}"] = float(cursor / stream.epoch_tokens)
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the global order, the same on every rank."""
        cursors = self.order.cursors(self.next_sequence).tolist()
        # One text, since a job with other sources could not load a tree of other names.
        past = {
            stream.name: {"content": stream.file.fingerprint(), "cursor": cursor}
            for stream, cursor in zip(self.streams, cursors, strict=True)
        }
        return {
            "step": self.next_step,
            "sequence": self.next_sequence,
            "seed": self.seed,
            "cell_tokens": self.streams[0].cell_tokens,
            "sources": json.dumps(past),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stopped, on any number of ranks and workers.

        What lies ahead may have changed; what was read may not: seed, sources, and the plan so far.

        Raises: ValueError if the saved past is not this job's
        """
        if not state_dict:
            return
        step, sequence = state_dict["step"], state_dict["sequence"]
        self._check_same("seed", state_dict["seed"], self.seed)
        cell = self.streams[0].cell_tokens
        self._check_same("longest sequence", state_dict["cell_tokens"], cell)
        self._micro_batch, self.next_step = 0, min(step, self.plan.num_steps)
        if step > self.plan.num_steps:  # nothing is left to read
            return
        past = json.loads(state_dict["sources"])
        files = {stream.name: stream.file for stream in self.streams}
        for name, then in past.items():
            if then["cursor"]:
                here = files[name].fingerprint() if name in files else "not there"
                self._check_same(f"content of {name}", then["content"], here)
        if sequence != self.next_sequence:
            try:  # as where another number of ranks takes another batch
                self.plan = self.plan.moved(step, sequence)
            except ValueError:
                self._check_same(f"sequences of {step} steps", sequence, self.next_sequence)
            self.order = GlobalOrder(self.plan, self.sources, self.seed)
        cursors = self.order.cursors(sequence).tolist()
        for name, cursor in zip(self.order.names, cursors, strict=True):
            then = past.get(name, {"cursor": 0})["cursor"]
            self._check_same(f"position in {name} after {step} steps", then, cursor)

    def epochs(self, num_steps: int) -> dict[str, float]:
        """Return how often each source will have been read after so many steps."""
        end = int(self.plan.first_sequence[min(num_steps, self.plan.num_steps)])
        cursors = self.order.cursors(end)
        return {
            stream.name: float(cursor / stream.epoch_tokens)
            for stream, cursor in zip(self.streams, cursors, strict=True)
        }

    def _check_same(self, what: str, then: Any, here: Any) -> None:
        if then != here:
            raise ValueError(
                f"the data loader's {what} is {here}; the checkpoint was made with {then}, and its "
                "position means nothing in another order"
            )


def describe_run(loader: CurriculumLoader, num_steps: int) -> list[str]:
    """Return lines about what a run of so many steps will read: its sources, and its phases."""
    lines = []
    width = max(len(stream.name) for stream in loader.streams)
    for stream, group, (name, epochs) in zip(
        loader.streams, loader.order.groups, loader.epochs(num_steps).items(), strict=True
    ):
        read = round(epochs * stream.epoch_tokens)
        lines.append(
            f"data: {name:<{width}}  group {group}: {len(stream.file):,} tokens, {read:,} to be "
            f"read, {epochs:.2f} epochs"
        )
    for index, begin in enumerate(loader.plan.phase_steps[:-1]):
        lines.append(f"data: phase {describe_step(loader, begin)}")
        wasted = loader.share.filling_rows(loader.plan.step(begin))
        if wasted:
            step = loader.plan.step(begin)
            lines.append(
                f"data: {wasted} of {wasted + step.num_sequences} rows of such a step are filling: "
                f"{loader.share.ranks} ranks cannot share {step.num_sequences} sequences evenly"
            )
        assert loader.plan.step(begin).phase == index
    return lines


def describe_step(loader: CurriculumLoader, index: int) -> str:
    """Return a step's phase, length and batch in words."""
    step = loader.plan.step(index)
    phase = loader.plan.phases[step.phase]
    rows, times = loader.share.rows(step), loader.share.micro_batches(step)
    return (
        f"{phase.name!r} from step {index + 1}: {step.num_sequences} x {step.seq_len} tokens a "
        f"step, {times} micro-batch{'es' if times > 1 else ''} of {rows} on each rank"
    )
