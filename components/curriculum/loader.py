"""The micro-batches of one rank, in the run's one global order, on any number of ranks and workers.

The ranks divide each step as `micro_batches.py` tells. So the whole state is one number, how many
sequences all ranks consumed together; what is saved beside it, the position in every source, tells
whether another job's past was the same.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader
from torchtitan.components.dataloader import BaseDataLoader

from titan_motif.components.curriculum.micro_batches import MicroBatches, SequenceReader, Share
from titan_motif.components.curriculum.order import GlobalOrder
from titan_motif.components.curriculum.schedule import RunPlan
from titan_motif.components.curriculum.sources import TokenStream
from titan_motif.components.stop_request import leave_to_the_rank
from titan_motif.kernels import documents_of

Batch = tuple[dict[str, Tensor], Tensor]
"""({"input": (batch, seq)}, labels (batch, seq)), int64; a label is the token after its input.
With documents, the inputs have "document_ids" (batch, seq), and "positions" where those restart."""


class LoaderError(RuntimeError):
    """Data that a step needs are not there; the text is one line.

    Args: is_alone: whether the others do not know of it: this rank has to tell
    """

    def __init__(self, text: str, *, is_alone: bool = False) -> None:
        super().__init__(text)
        self.is_alone = is_alone


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


def as_batch(parts: Iterable[Tensor], documents: DocumentInputs | None = None) -> Batch:
    """Return a micro-batch of its tokens, its labels, and of packed samples the documents."""
    inputs, labels, *ids = parts
    more = {} if documents is None else documents.of(inputs, *ids)
    return {"input": inputs, **more}, labels


def collate(rows: Iterable[Sequence[Tensor]], documents: DocumentInputs | None = None) -> Batch:
    """Return the micro-batch of rows, each with its tokens, labels and perhaps documents."""
    return as_batch(map(torch.stack, zip(*rows, strict=True)), documents)


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
        batches = MicroBatches(
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
                worker_init_fn=leave_to_the_rank,
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
            parts = torch.from_numpy(batch).long()
            made = as_batch(parts.pin_memory() if self.pins else parts, self.documents)
            # Counted when handed out: what workers have read ahead is not consumed.
            self._micro_batch += 1
            if self._micro_batch == self.share.micro_batches(self.plan.step(self.next_step)):
                self.next_step, self._micro_batch = self.next_step + 1, 0
            yield made

    @property
    def next_sequence(self) -> int:
        """Sequences that the steps before the next one took."""
        return int(self.plan.first_sequence[self.next_step])

    def take_back(self, num_steps: int) -> None:
        """Count so many steps as read: what was handed out after them was not used."""
        self.next_step, self._micro_batch = num_steps, 0

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
            f"sources {names}: {reason}; started again, the run goes on from its last checkpoint",
            is_alone=True,
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
