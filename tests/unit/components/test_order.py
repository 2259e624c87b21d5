"""The global order: shares in every block, positions without gaps, the same from anywhere."""

from itertools import pairwise

import numpy as np
import pytest

from titan_motif.components.curriculum.order import GlobalOrder
from titan_motif.components.curriculum.schedule import BLOCK, Phase, plan_run

REPORTED = plan_run(
    [
        Phase("stable", 4_500_000, 64, 4096, 16_384, {"a": 0.9, "b": 0.08, "c": 0.02}, {"a": 1.0}),
        Phase(
            "annealing", 4_700_000, 64, 16_384, 16_384, {"a": 0.31, "b": 0.6, "c": 0.09}, {"b": 1.0}
        ),
        Phase("long", 5_500_000, 256, 16_384, 16_384, {"a": 0.5, "c": 0.5}, {"a": 0.5, "c": 0.5}),
    ]
)
SOURCES = [("a1", "a", 0.7), ("a2", "a", 0.3), ("b", "b", 1.0), ("c1", "c", 0.5), ("c2", "c", 0.5)]


def drawn_plan(random: np.random.Generator, groups: list[str]):
    """A few phases, some shorter than a block, of groups that come and go."""
    phases, tokens = [], 0
    for number in range(random.integers(1, 6)):
        seq_len = int(random.choice([4, 8, 16]))
        tokens += int(random.integers(100, 5000)) * seq_len
        batches = random.integers(1, 20, 2) * seq_len
        weights = []
        for _ in range(2):
            drawn = random.random(len(groups)) * (random.random(len(groups)) > 0.3)
            drawn[random.integers(len(groups))] += 0.1
            weights.append(dict(zip(groups, drawn / drawn.sum(), strict=True)))
        phases.append(Phase(str(number), tokens, seq_len, *map(int, batches), *weights))
    return plan_run(phases)


def drawn_sources(random: np.random.Generator, groups: list[str]) -> list[tuple[str, str, float]]:
    sources = []
    for group in groups:
        shares = random.dirichlet(np.ones(random.integers(1, 4)))
        sources += [(f"{group}{i}", group, float(share)) for i, share in enumerate(shares)]
    return sources


def expected_counts(order: GlobalOrder, begin: int, end: int) -> dict[str, float]:
    """The expectation by a loop over sequences, from the definition."""
    expected = dict.fromkeys(order.groups, 0.0)
    for number in range(begin, end):
        (mixture,) = [m for m in order.mixtures if m.segment.begin <= number < m.reach]
        length = mixture.segment.end - mixture.segment.begin
        progress = min((number - mixture.segment.begin + 0.5) / length, 1)
        weights = mixture.start + progress * (mixture.end - mixture.start)
        for group, weight in zip(order.groups, weights, strict=True):
            expected[group] += weight
    return expected


def check(order: GlobalOrder) -> float:
    """Return the largest error of a group in an aligned block; assert what holds beside that."""
    worst, cursors = 0.0, np.zeros(len(order.names), dtype=np.int64)
    for index in range(-(-order.num_sequences // BLOCK)):
        begin, end = index * BLOCK, (index + 1) * BLOCK
        assert (order.cursors(begin) == cursors).all()
        block = order.block(index)
        assert len(block.sources) == end - begin
        edges = {m.segment.begin - begin for m in order.mixtures}
        for number, source in enumerate(block.sources):
            if number in edges:  # a phase begins on whole cells
                cursors = -(-cursors // order.cell_tokens) * order.cell_tokens
            assert block.cursors[number] == cursors[source]
            cursors[source] += block.lengths[number]
        assert (block.after == cursors).all()
        counts = np.bincount(block.sources, minlength=len(order.names))
        assert (order.counts(begin, end) == counts).all()
        for group, expected in expected_counts(order, begin, end).items():
            found = sum(counts[i] for i, name in enumerate(order.groups) if name == group)
            worst = max(worst, abs(found - expected))
        for mixture in order.mixtures:  # what has no weight is not read
            first = max(mixture.segment.begin, begin) - begin
            used = block.sources[first : max(mixture.reach - begin, 0)]
            assert (mixture.start + mixture.end)[np.unique(used)].all()
    assert (order.cursors(end) == cursors).all()
    return worst


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_shares_hold_in_every_block(seed: int):
    assert check(GlobalOrder(REPORTED, SOURCES, seed)) < 1.5


def test_shares_hold_in_every_block_of_any_curriculum():
    for seed in range(20):
        random = np.random.default_rng(seed)
        groups = [f"g{i}" for i in range(random.integers(1, 9))]
        plan = drawn_plan(random, groups)
        assert check(GlobalOrder(plan, drawn_sources(random, groups), seed)) < 2


def test_an_order_is_its_seeds_and_follows_the_weights_within_a_block():
    first, again, other = (GlobalOrder(REPORTED, SOURCES, seed) for seed in (7, 7, 8))
    assert (first.block(3).sources == again.block(3).sources).all()
    assert (first.block(3).sources != other.block(3).sources).mean() > 0.1
    # Evenly spread: each run of 64 sequences has the shares, within a few.
    parts = first.block(0).sources.reshape(-1, 64)
    assert (np.abs((parts < 2).sum(1) - 0.91 * 64) <= 5).all()
    # A rare group is not at the same place of every block.
    places = [int(np.argmax(first.block(i).sources == 2)) for i in range(8)]
    assert len(set(places)) > 4


def test_an_order_does_not_depend_on_where_the_run_ends():
    def block(tokens: int):
        weights = {"a": 0.7, "b": 0.2, "c": 0.1}
        plan = plan_run([Phase("all", tokens, 4, 40, 40, weights, weights)])
        return GlobalOrder(plan, SOURCES, 7).block(0)

    assert all((a == b).all() for a, b in zip(block(400), block(40_000), strict=True))


def test_rounding_favours_nobody():
    plan = plan_run([Phase("p", 1024 * 400, 1, 1, 1, w := {"a": 0.7504, "b": 0.2496}, w)])
    order = GlobalOrder(plan, [("a", "a", 1.0), ("b", "b", 1.0)], 0)
    counts = np.array([order.counts(i * BLOCK, (i + 1) * BLOCK) for i in range(400)])
    assert set(counts[:, 1].tolist()) == {255, 256}  # of 255.59
    assert counts[:, 1].mean() == pytest.approx(255.59, abs=0.1)


def test_positions_far_into_a_long_run_are_found_at_once():
    # 5.5T tokens: 1.2 billion sequences. A walk over its blocks would take an hour.
    weights = {"a": 0.7, "b": 0.3}, {"a": 0.4, "b": 0.6}
    phases = [
        Phase("stable", 4_500_000_000_000, 4096, 1 << 24, 80 << 20, *weights),
        Phase("long", 5_500_000_000_000, 16_384, 80 << 20, 80 << 20, *weights),
    ]
    order = GlobalOrder(plan_run(phases), [("a", "a", 1.0), ("b", "b", 1.0)], 0)
    edge = order.mixtures[1].segment.begin
    for number in (edge - 5, edge + 1025, order.num_sequences - 3):
        after, before = order.cursors(number + 1), order.cursors(number)
        length = 4096 if number < edge else 16_384
        assert sorted((after - before).tolist()) == [0, length]
    assert order.cursors(order.num_sequences).sum() == pytest.approx(5.5e12, rel=1e-4)


def test_a_reader_that_jumps_and_one_that_walks_agree():
    order = GlobalOrder(REPORTED, SOURCES, 5)
    edges = [segment.begin for segment in REPORTED.segments] + [order.num_sequences]
    numbers = [
        n for begin, end in pairwise(edges) for n in (begin + 1, (begin + end) // 2, end - 1)
    ]
    for number in numbers:
        index, place = divmod(number, BLOCK)
        block = order.block(index)
        source = block.sources[place]
        after = order.cursors(number + 1)[source]
        assert after == block.cursors[place] + block.lengths[place]
