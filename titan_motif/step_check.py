"""The gate of a run's steps: set as the job says, and told what a step reads."""

from collections.abc import Iterator
from dataclasses import replace

from titan_motif.components.checkpoint import CompleteStepCheckpointManager
from titan_motif.components.curriculum.loader import CurriculumLoader
from titan_motif.components.curriculum.micro_batches import SequenceReader
from titan_motif.components.loss_window import LossWindow
from titan_motif.components.step_gate import Finding, StepGate
from titan_motif.config import StepCheck

LOSS_WINDOW = "loss_window"
"""Of a checkpoint: the last losses, in a job that looks for spikes."""
NUM_TOLD = 3
"""Sequences of a micro-batch whose documents are told, and documents of each."""


class StepCheckOfRun:
    """Sets a gate as a job says, and tells which documents a refused step holds.

    Args: checkpointer: keeps the losses that spikes are measured by
    """

    def __init__(
        self,
        gate: StepGate,
        settings: StepCheck,
        loader: CurriculumLoader,
        checkpointer: CompleteStepCheckpointManager,
    ) -> None:
        self.gate, self.loader = gate, loader
        self._begun = 0, 0
        gate.describe = self.describe
        gate.max_skipped = settings.max_skipped_steps
        gate.data_rank, gate.data_ranks = loader.share.rank, loader.share.ranks
        gate.stops_at_spike = settings.loss_spike == "stop"
        if settings.loss_spike == "ignore":
            return
        gate.window = LossWindow(settings.spike_window, settings.spike_z_score, gate.device)
        if checkpointer.enable:
            checkpointer.states[LOSS_WINDOW] = gate.window
            checkpointer.optional_states = frozenset({LOSS_WINDOW})

    def begin(self, step: int) -> None:
        """Begin a step of the run, before its data are read."""
        self.gate.begin(step)
        index = self.loader.next_step
        self._begun = step, index
        is_new = index == 0 or self._part(index) != self._part(index - 1)
        if self.gate.window is not None and is_new:
            self.gate.window.empty()

    def describe(self, finding: Finding) -> str:
        """Return a finding in words, with the documents of its first bad micro-batch."""
        step, index = self._begun
        index -= step - finding.step  # a run may have begun its data anew
        if finding.parameters or finding.states:  # no document is to blame
            return str(finding)
        if not finding.losses:
            return f"{finding}; its documents: titan-motif data trace --step {index + 1}"
        told = "; ".join(self._sequences(index, *finding.losses[0]))
        return f"{finding}; the documents of the first of these micro-batches: {told}"

    def _part(self, index: int) -> tuple[int, int]:
        step = self.loader.plan.step(index)
        return step.phase, step.seq_len

    def _sequences(self, index: int, rank: int, micro_batch: int) -> Iterator[str]:
        loader = self.loader
        step = loader.plan.step(index)
        reader = SequenceReader(loader.order, loader.streams)
        numbers = replace(loader.share, rank=rank).numbers(step, micro_batch)
        numbers = range(
            numbers.start, min(numbers.stop, step.first_sequence + step.num_sequences)
        )  # without filling
        for number in numbers[:NUM_TOLD]:
            found = reader.find(number)
            stream = loader.streams[found.source]
            pieces = stream.documents(found.cursor, found.seq_len)
            names = ["-" if piece.document is None else str(piece.document) for piece in pieces]
            documents = ", ".join(names[:NUM_TOLD]) + _more(len(names) - NUM_TOLD)
            group = loader.order.groups[found.source]
            yield f"of {stream.name} (group {group}) {documents}"
        if len(numbers) > NUM_TOLD:
            yield f"{len(numbers) - NUM_TOLD} more sequences"


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
