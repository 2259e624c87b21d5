"""One global order: which source the n-th sequence of a run is read from, and where in it.

Random access, and nothing but (seed, plan, n) decides: ranks, workers and restarts do not. Aligned
blocks of 1024 sequences keep the shares. A block's count of each source is its expected count
rounded by one random number for the whole block (systematic sampling: all cumulative counts plus
u in [0, 1), rounded down), so that it is off by less than 1, for a source as for a group of
neighbouring sources, is right on average, and sums up; a source without weight gets nothing. The
counts are closed formulas, so that the position in every source is known after any number of
blocks in a moment. Within a block each source's sequences are spread evenly, with jitter. A phase
begins on a whole cell of each source (sources.py): no sequence is cut out of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from titan_motif.components.curriculum.mixing import mix
from titan_motif.components.curriculum.schedule import BLOCK, RunPlan, Segment

_CHUNK = 1 << 14
"""Blocks whose counts are computed together: memory stays small, however long the run."""
_NEVER = 1 << 62


@dataclass(frozen=True)
class Mixture:
    """Shares of all sources over the sequences of one phase, linear from its first to its last."""

    segment: Segment
    reach: int
    """Where the next phase begins; nowhere after the last, whose shares then stay."""
    start: np.ndarray  # (sources,)
    end: np.ndarray  # (sources,)

    def expected(self, begin: np.ndarray | int, end: np.ndarray | int) -> np.ndarray:
        """Return each source's expected sequences among those from `begin` to `end`.

        Equation: sum over n of start + (end - start) (n + 1/2) / N, n from the phase's beginning;
                  of start + (end - start) beyond N
        Shapes:   begin, end (...,) within reach of the phase -> (..., sources)
        """
        begin, end = (np.asarray(x, dtype=np.float64)[..., None] for x in (begin, end))
        length = self.segment.end - self.segment.begin
        first, after = (np.minimum(x - self.segment.begin, length) for x in (begin, end))
        moved = (after**2 - first**2) / (2 * length) + (end - begin) - (after - first)
        return (end - begin) * self.start + moved * (self.end - self.start)


class Block(NamedTuple):
    """1024 sequences of the order; those after the end of a run are as if it went on."""

    sources: np.ndarray  # (sequences,) which source
    lengths: np.ndarray  # (sequences,) tokens
    cursors: np.ndarray  # (sequences,) where in the source's endless stream of tokens
    after: np.ndarray  # (sources,) where in every stream the next block begins


class GlobalOrder:
    """The order of a whole run.

    Args:
        plan:    what the run reads when
        sources: (name, group, share within its group) of every source, those of a group together
        seed:    of the rounding and the jitter
    """

    def __init__(self, plan: RunPlan, sources: Sequence[tuple[str, str, float]], seed: int) -> None:
        self.names = [name for name, _, _ in sources]
        self.groups = [group for _, group, _ in sources]
        self.num_sequences = int(plan.first_sequence[-1])
        self.cell_tokens = plan.longest_sequence
        segments = plan.segments
        reaches = [*(segment.begin for segment in segments[1:]), _NEVER]
        self.mixtures = [
            Mixture(
                segment,
                reach,
                *(
                    np.array([weights.get(group, 0.0) * share for _, group, share in sources])
                    for weights in (phase.weights_start, phase.weights_end)
                ),
            )
            for phase, segment, reach in zip(plan.phases, segments, reaches, strict=True)
        ]
        self._key = mix(seed ^ 0x5851F42D4C957F2D)

    def block(self, index: int, cursors: np.ndarray | None = None) -> Block:
        """Return a block; `cursors` are those at its beginning, if they are known."""
        after = self.cursors(index * BLOCK) if cursors is None else cursors
        sources, lengths, positions = [], [], []
        for number, (mixture, counts) in enumerate(self._counts_of_block(index)):
            after = self._entered(mixture, index, after)
            found, length = self._spread(index, number, counts), mixture.segment.seq_len
            where = np.empty(len(found), dtype=np.int64)
            for source in np.unique(found):
                mine = found == source
                where[mine] = after[source] + length * np.arange(counts[source])
            after = after + counts * length
            sources.append(found)
            lengths.append(np.full(len(found), length))
            positions.append(where)
        return Block(*map(np.concatenate, (sources, lengths, positions)), after)

    def cursors(self, sequence: int) -> np.ndarray:
        """Return where in every source's stream the sequences before this one end."""
        whole = sequence // BLOCK
        tokens = np.zeros(len(self.names), dtype=np.int64)
        done = 0
        for mixture in self.mixtures:
            # The blocks within the phase; those across an edge come one by one.
            first, last = -(-mixture.segment.begin // BLOCK), min(mixture.reach // BLOCK, whole)
            for edge in range(done, min(first, whole)):
                tokens = self._after_block(edge, tokens)
            if first < last:
                tokens = self._entered(mixture, first, tokens)
            for chunk in range(first, last, _CHUNK):
                indices = np.arange(chunk, min(chunk + _CHUNK, last))
                expected = mixture.expected(indices * BLOCK, (indices + 1) * BLOCK)
                counts = _round(expected, BLOCK, self._random(indices)).sum(0)
                tokens = tokens + counts * mixture.segment.seq_len
            done = max(done, min(first, whole), last)
        for edge in range(done, whole):
            tokens = self._after_block(edge, tokens)
        rest = sequence % BLOCK
        if rest:
            block = self.block(whole, tokens)
            for source in np.unique(block.sources[:rest]):
                last_one = np.flatnonzero(block.sources[:rest] == source)[-1]
                tokens[source] = block.cursors[last_one] + block.lengths[last_one]
        return tokens

    def _after_block(self, index: int, tokens: np.ndarray) -> np.ndarray:
        for mixture, counts in self._counts_of_block(index):
            tokens = self._entered(mixture, index, tokens) + counts * mixture.segment.seq_len
        return tokens

    def _entered(self, mixture: Mixture, index: int, tokens: np.ndarray) -> np.ndarray:
        """Return positions moved on to whole cells where a phase begins in a block."""
        if mixture.segment.begin < index * BLOCK:
            return tokens
        return -(-tokens // self.cell_tokens) * self.cell_tokens

    def counts(self, begin: int, end: int) -> np.ndarray:
        """Return how many sequences of each source lie between two numbers."""
        found = np.zeros(len(self.names), dtype=np.int64)
        for index in range(begin // BLOCK, -(-end // BLOCK)):
            first = index * BLOCK
            sources = np.concatenate(
                [
                    self._spread(index, number, counts)
                    for number, (_, counts) in enumerate(self._counts_of_block(index))
                ]
            )[max(begin - first, 0) : end - first]
            found += np.bincount(sources, minlength=len(found))
        return found

    def _counts_of_block(self, index: int) -> list[tuple[Mixture, np.ndarray]]:
        """Return the counts of a block's sources, one phase after the other."""
        begin, end = index * BLOCK, (index + 1) * BLOCK
        u = self._random(np.array([index]))[0]
        found: list[tuple[Mixture, np.ndarray]] = []
        owed = np.zeros(len(self.names))  # what earlier phases of the block left over
        for mixture in self.mixtures:
            first, after = max(begin, mixture.segment.begin), min(end, mixture.reach)
            if first >= after:
                continue
            expected = mixture.expected(first, after)
            wanted = np.where(expected > 0, np.maximum(expected + owed, 0), 0)
            counts = _round(wanted * (after - first) / wanted.sum(), after - first, u)
            owed += expected - counts
            found.append((mixture, counts))
        return found

    def _spread(self, index: int, number: int, counts: np.ndarray) -> np.ndarray:
        """Return the sources of a phase's part of a block, each spread over the whole part."""
        sources = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(sources)) - np.repeat(np.cumsum(counts) - counts, counts)
        draws = np.uint64(index) * np.uint64(2 * BLOCK) + np.uint64(number * BLOCK)
        jitter = self._random(draws + np.arange(len(sources), dtype=np.uint64), stream=1)
        return sources[np.argsort((place + jitter) / np.repeat(counts, counts), kind="stable")]

    def _random(self, indices: np.ndarray, stream: int = 0) -> np.ndarray:
        """Return a number in [0, 1) for each index, always the same."""
        bits = mix(mix(indices.astype(np.uint64) + np.uint64(self._key)) + np.uint64(stream))
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _round(expected: np.ndarray, total: int, u: np.ndarray | float) -> np.ndarray:
    """Return whole numbers, each less than 1 from what is expected, that sum to `total`.

    Shapes: expected (..., sources), of that sum up to rounding; u (...,) in [0, 1)
    """
    cumulative = np.cumsum(expected, axis=-1)
    # Where the rest has no weight, nothing may come of what float64 left of the sum.
    cumulative = np.where(cumulative > total - 1e-6, total, cumulative)
    cumulative[..., -1] = total
    bounds = np.floor(cumulative + np.asarray(u)[..., None]).astype(np.int64)
    return np.diff(bounds, axis=-1, prepend=0)
