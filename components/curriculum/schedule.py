"""What a run reads when: phases of mixture, sequence length and batch size, planned step by step.

Pure arithmetic over tokens: nothing here knows of ranks, files or tensors. A phase lasts until a
count of tokens; its weights move linearly from its first token to its last, its batch may grow in
the same way, and its end snaps to a whole batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

BLOCK = 1024
"""Sequences in which the shares of groups are kept (`order.GlobalOrder`)."""
MAX_TOKENS = 10**15
"""Of a run: far more than there are to read, and far from what 64 bits count."""
MAX_STEPS = 10_000_000
"""Of a run, each of which is planned in memory."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, as its user describes it."""

    name: str
    until_tokens: int
    """Tokens of the whole run at which the phase ends."""
    seq_len: int
    """Tokens of a sequence."""
    batch_tokens: int
    """Tokens of a step of all ranks, at the phase's beginning."""
    batch_tokens_end: int
    """The same at its end; in between it grows linearly in tokens, by whole sequences."""
    weights_start: Mapping[str, float]
    """Share of each group at the phase's beginning; one that is left out has none."""
    weights_end: Mapping[str, float]
    """The same at its end."""


class Step(NamedTuple):
    """What one step reads."""

    phase: int
    seq_len: int
    first_sequence: int
    """Number of its first sequence, counted over the whole run."""
    num_sequences: int
    tokens_before: int
    """Tokens of all steps before it."""

    @property
    def tokens(self) -> int:
        """That all ranks read together."""
        return self.num_sequences * self.seq_len


class Segment(NamedTuple):
    """The sequences of a phase, by their number in the run."""

    begin: int
    end: int
    seq_len: int


@dataclass(frozen=True)
class RunPlan:
    """Every step of a run. Steps count from 0: step i of the plan is the trainer's i + 1."""

    phases: tuple[Phase, ...]
    phase_steps: tuple[int, ...]
    """Step at which each phase begins, and at the end the number of steps."""
    first_sequence: np.ndarray  # (steps + 1,) int64
    """Sequences before each step, and at the end of all."""
    tokens: np.ndarray  # (steps + 1,) int64
    """Tokens before each step, and of all."""

    @property
    def num_steps(self) -> int:
        """Of all phases."""
        return self.phase_steps[-1]

    @property
    def total_tokens(self) -> int:
        """Of all steps."""
        return int(self.tokens[-1])

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence, which the others divide."""
        return max(phase.seq_len for phase in self.phases)

    @property
    def segments(self) -> list[Segment]:
        """The phases as ranges of sequences."""
        return [
            Segment(int(self.first_sequence[begin]), int(self.first_sequence[end]), phase.seq_len)
            for phase, (begin, end) in zip(self.phases, pairwise(self.phase_steps), strict=True)
        ]

    def step(self, index: int) -> Step:
        """Return step `index`, from 0; IndexError past the end."""
        if not 0 <= index < self.num_steps:
            raise IndexError(f"step {index}; the plan has {self.num_steps}")
        phase = int(np.searchsorted(self.phase_steps, index, side="right")) - 1
        first, after = self.first_sequence[index : index + 2]
        before = int(self.tokens[index])
        return Step(phase, self.phases[phase].seq_len, int(first), int(after - first), before)

    def tokens_at(self, step: int) -> int:
        """Return the tokens of the first `step` steps; beyond the end the last step goes on."""
        beyond = max(step - self.num_steps, 0)
        last = int(self.tokens[-1] - self.tokens[-2])
        return int(self.tokens[min(step, self.num_steps)]) + beyond * last

    def weights(self, step: int) -> dict[str, float]:
        """Return the planned share of each group in the middle of a step."""
        phase = self.phases[self.step(step).phase]
        segment = self.segments[self.step(step).phase]
        middle = (self.first_sequence[step] + self.first_sequence[step + 1]) / 2
        return weights_at(phase, (middle - segment.begin) / (segment.end - segment.begin))

    def moved(self, step: int, first_sequence: int) -> "RunPlan":
        """Return the plan of a run that has come to another sequence before this step.

        Another number of ranks may have had another batch. The steps before are no longer told
        apart.

        Raises: ValueError if there is more than one phase, or a phase in which something changes
        """
        if len(self.phases) > 1 or is_changing(self.phases[0]):
            raise ValueError("only a plan in which nothing changes can be moved")
        shift = first_sequence - int(self.first_sequence[step])
        moved = self.first_sequence + shift
        moved[:step] = np.linspace(0, first_sequence, step, endpoint=False, dtype=np.int64)
        return replace(self, first_sequence=moved, tokens=moved * self.phases[0].seq_len)


def weights_at(phase: Phase, progress: float) -> dict[str, float]:
    """Return the shares of a phase's groups at `progress`, 0 at its beginning and 1 at its end."""
    names = dict.fromkeys((*phase.weights_start, *phase.weights_end))
    start, end = phase.weights_start, phase.weights_end
    return {
        name: start.get(name, 0.0) + progress * (end.get(name, 0.0) - start.get(name, 0.0))
        for name in names
    }


def is_changing(phase: Phase) -> bool:
    """Return whether batch or mixture change within a phase."""
    return phase.batch_tokens != phase.batch_tokens_end or any(
        phase.weights_start.get(name, 0.0) != share for name, share in weights_at(phase, 1).items()
    )


def plan_run(phases: Sequence[Phase], batch_multiple: int = 1) -> RunPlan:
    """Plan every step of the phases, which `find_problems` has nothing to say against.

    Args:
        batch_multiple: batches of a ramp are rounded to this many sequences
    """
    batches: list[np.ndarray] = []
    phase_steps, tokens = [0], 0
    for phase in phases:
        batches.append(_batches(phase, tokens, batch_multiple))
        phase_steps.append(phase_steps[-1] + len(batches[-1]))
        tokens += int(batches[-1].sum()) * phase.seq_len
    sizes = np.concatenate(batches)
    lengths = np.repeat([phase.seq_len for phase in phases], np.diff(phase_steps))
    return RunPlan(
        tuple(phases),
        tuple(phase_steps),
        np.concatenate(([0], np.cumsum(sizes))),
        np.concatenate(([0], np.cumsum(sizes * lengths))),
    )


def _batches(phase: Phase, begin_tokens: int, multiple: int) -> np.ndarray:
    """Return the sequences of each step of a phase that begins at so many tokens."""
    length, span = phase.seq_len, phase.until_tokens - begin_tokens
    first, last = phase.batch_tokens // length, phase.batch_tokens_end // length
    if first == last:
        num_steps = max(round(span / (first * length)), 1)
        return np.full(num_steps, first, dtype=np.int64)
    sizes, tokens = [], 0
    while True:
        wanted = first + (last - first) * min(tokens / span, 1.0) if span > 0 else last
        size = max(round(wanted / multiple) * multiple, multiple)
        if sizes and tokens + size * length / 2 > span:
            return np.array(sizes, dtype=np.int64)
        sizes.append(size)
        tokens += size * length


class Problem(NamedTuple):
    """What is wrong with a curriculum: which field (phases.1.seq_len, caps), and how."""

    field: str
    message: str


def find_problems(
    phases: Sequence[Phase],
    groups: Sequence[str],
    caps: Mapping[str, float],
    batch_multiple: int = 1,
) -> list[Problem]:
    """Return everything that keeps phases from being planned over these groups of sources."""
    problems = []
    before, longest = 0, max((phase.seq_len for phase in phases), default=1)
    num_steps = 0
    for i, phase in enumerate(phases):
        where = f"phases.{i + 1}"
        smallest = max(min(phase.batch_tokens, phase.batch_tokens_end), 1)
        num_steps += max(phase.until_tokens - before, 0) // smallest
        if phase.until_tokens > MAX_TOKENS:
            told = f"is {phase.until_tokens:,}; at most {MAX_TOKENS:,} is allowed"
            problems.append(Problem(f"{where}.until_tokens", told))
        elif num_steps > MAX_STEPS and phase.batch_tokens > 0:
            told = f"is {phase.until_tokens:,}; with batches of {smallest:,} tokens that is step"
            message = f"{told} {num_steps:,}: at most {MAX_STEPS:,} steps are allowed"
            problems.append(Problem(f"{where}.until_tokens", message))
        if phase.until_tokens <= before:
            told = f"is {phase.until_tokens:,}; phase {phase.name!r} begins at {before:,} tokens"
            problems.append(Problem(f"{where}.until_tokens", f"{told}: more is needed"))
        elif phase.until_tokens - before < phase.batch_tokens:
            told = f"is {phase.until_tokens:,}; phase {phase.name!r} has"
            told = f"{told} {phase.until_tokens - before:,} tokens, less than its first batch"
            message = f"{told} of {phase.batch_tokens:,}"
            problems.append(Problem(f"{where}.until_tokens", message))
        elif phase.until_tokens - before < phase.batch_tokens_end:
            told = f"is {phase.batch_tokens_end:,}; phase {phase.name!r} has"
            message = f"{told} {phase.until_tokens - before:,} tokens: at most that is allowed"
            problems.append(Problem(f"{where}.global_batch_tokens_end", message))
        before = max(before, phase.until_tokens)
        if phase.seq_len > 0 and longest % phase.seq_len:
            told = f"is {phase.seq_len:,}; a divisor of the longest, {longest:,}, is needed"
            problems.append(Problem(f"{where}.seq_len", told))
        problems += _size_problems(where, phase, batch_multiple)
        for name in ("weights_start", "weights_end"):
            problems += _weight_problems(f"{where}.{name}", getattr(phase, name), groups, caps)
    for group, cap in caps.items():
        if group not in groups:
            problems.append(Problem("caps", f"names {group!r}; the groups are {_list(groups)}"))
        elif not 0 < cap <= 1:
            problems.append(Problem("caps", f"gives {group!r} {cap}; above 0 to 1 is allowed"))
    return problems


def _size_problems(where: str, phase: Phase, multiple: int) -> list[Problem]:
    length = phase.seq_len
    if length < 1:
        return [Problem(f"{where}.seq_len", f"is {length}; at least 1 is needed")]
    problems = []
    for name, key in (
        ("batch_tokens", "global_batch_tokens"),
        ("batch_tokens_end", "global_batch_tokens_end"),
    ):
        tokens, unit = getattr(phase, name), length * multiple
        if tokens < 1 or tokens % unit:
            near = sorted({max(tokens // unit, 1) * unit, (tokens // unit + 1) * unit})
            told = f"a multiple of seq_len {length:,}" if multiple == 1 else f"of {unit:,}"
            told = told if multiple == 1 else f"a multiple {told} (seq_len x batch_multiple)"
            allowed = " or ".join(f"{value:,}" for value in near if value > 0)
            problems.append(
                Problem(f"{where}.{key}", f"is {tokens:,}; {told} is needed, such as {allowed}")
            )
    return problems


def _weight_problems(
    where: str, weights: Mapping[str, float], groups: Sequence[str], caps: Mapping[str, float]
) -> list[Problem]:
    problems = []
    for group, weight in weights.items():
        if group not in groups:
            told = f"names the group {group!r}; the groups of the sources are {_list(groups)}"
            problems.append(Problem(where, told))
        elif not weight >= 0:
            problems.append(Problem(where, f"gives {group!r} {weight}; at least 0 is needed"))
        elif 0 < caps.get(group, 0.0) <= 1:
            # A block may hold a sequence more than the share says, but none over the cap.
            most = int(caps[group] * BLOCK) / BLOCK
            if weight > most:
                told = f"gives {group!r} {weight:g}; the cap of {caps[group]:g} allows {most:.5f}"
                problems.append(Problem(where, f"{told}, {most * BLOCK:.0f} of {BLOCK} sequences"))
    total = sum(weights.values())
    if not problems and abs(total - 1) > 1e-6:
        problems.append(Problem(where, f"sums to {total:.6g}; 1 is needed"))
    return problems


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
