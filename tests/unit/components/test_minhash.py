"""Near duplicates against brute force: signatures, bands, who stays."""

import numpy as np
import pytest

from titan_motif.components.sft.minhash import (
    NUM_HASHES,
    band_rows,
    find_repeats,
    signature,
    similarities,
)
from titan_motif.components.sft.words import normalized, run_hashes, words_of

THRESHOLD = 0.8


def sets_of(generator: np.random.Generator, num_pairs: int) -> list[np.ndarray]:
    """Pairs of sets of 60 to 200 members whose similarity is spread from 0.4 to 1."""
    found = []
    for _ in range(num_pairs):
        size = int(generator.integers(60, 200))
        whole = generator.integers(0, 2**64 - 1, 2 * size, dtype=np.uint64)
        common = int(size * generator.uniform(0.6, 1.0))
        found.append(np.unique(whole[:size]))
        found.append(np.unique(np.concatenate([whole[:common], whole[size : 2 * size - common]])))
    return found


def of_sets(a: np.ndarray, b: np.ndarray) -> float:
    mine, theirs = set(a.tolist()), set(b.tolist())
    return len(mine & theirs) / len(mine | theirs)


def test_signatures_estimate_the_similarity():
    sets = sets_of(np.random.default_rng(0), 200)
    errors = []
    for a, b in zip(sets[::2], sets[1::2], strict=True):
        exact = of_sets(a, b)
        assert similarities(a, [b, a, b[:1]]).tolist() == pytest.approx(
            [exact, 1.0, of_sets(a, b[:1])]
        )
        errors.append((signature(a) == signature(b)).mean() - exact)
    # Of a binomial's mean: sqrt(0.25 / NUM_HASHES) at most for one, and none of it for all.
    assert np.std(errors) < 0.05
    assert abs(np.mean(errors)) < 0.01


def test_members_in_blocks_and_in_any_order_have_the_same_signature():
    members = np.random.default_rng(1).integers(0, 2**64 - 1, 9000, dtype=np.uint64)
    whole = signature(members)
    parts = np.minimum(signature(members[:5000]), signature(members[5000:]))
    assert np.array_equal(whole, parts)
    assert np.array_equal(whole, signature(members[::-1]))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold_and_are_as_narrow_as_that_allows(threshold: float):
    def recall(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (NUM_HASHES // rows)

    rows = band_rows(threshold)
    assert recall(rows) >= 0.99
    assert rows == 32 or recall(rows + 1) < 0.99


@pytest.mark.parametrize("order", ["first", "last"])
def test_repeats_are_those_of_brute_force(order: str):
    sets = sets_of(np.random.default_rng(2), 400)
    signatures = np.stack([signature(members) for members in sets])
    numbers = range(len(sets)) if order == "first" else range(len(sets) - 1, -1, -1)
    found = find_repeats(signatures, sets.__getitem__, THRESHOLD, numbers)
    expected, similar = {}, 0
    for first in range(0, len(sets), 2):  # only the two of a pair have anything in common
        exact = of_sets(sets[first], sets[first + 1])
        similar += exact >= THRESHOLD
        if exact >= THRESHOLD:
            gone, kept = (first + 1, first) if order == "first" else (first, first + 1)
            expected[gone] = (kept, pytest.approx(exact))
    assert 100 < similar < 300
    assert found.items() <= expected.items()  # verified by the exact similarity: none too many
    assert len(found) >= 0.99 * len(expected)


def test_equal_similarities_repeat_the_first_that_stays():
    members = np.random.default_rng(4).integers(0, 2**63, 130, dtype=np.uint64)
    base, rest = members[:100], members[100:]
    sets = [np.sort(np.append(base, rest[10 * n : 10 * n + 10])) for n in range(2)]
    sets.append(np.sort(base))
    signatures = np.stack([signature(one) for one in sets])
    found = find_repeats(signatures, sets.__getitem__, 0.88, range(3))
    assert found == {2: (0, pytest.approx(100 / 110))}  # the two others are 100 / 120 alike


def test_a_chain_of_small_changes_keeps_what_differs():
    """Each is 0.82 like the next; those two steps apart are under the threshold."""
    members = np.random.default_rng(3).integers(0, 2**64 - 1, 400, dtype=np.uint64)
    chain = [np.sort(members[10 * step : 10 * step + 100]) for step in range(6)]
    assert of_sets(chain[0], chain[1]) == pytest.approx(90 / 110)
    assert of_sets(chain[0], chain[2]) == pytest.approx(80 / 120)
    signatures = np.stack([signature(one) for one in chain])
    found = find_repeats(signatures, chain.__getitem__, THRESHOLD, range(6))
    assert {gone: repeat.of for gone, repeat in found.items()} == {1: 0, 3: 2, 5: 4}


def test_runs_of_words_are_hashed_by_their_words_in_order():
    words = words_of(normalized("The  cat\nSAT on the mat, the cat sat."))
    assert words == ["the", "cat", "sat", "on", "the", "mat", "the", "cat", "sat"]
    runs = run_hashes(words, 3)
    assert len(runs) == 7
    assert [np.flatnonzero(runs == run).tolist() for run in runs[:2]] == [[0, 6], [1]]
    assert len({*run_hashes(["a", "b"], 2).tolist(), *run_hashes(["b", "a"], 2).tolist()}) == 2
    assert len(run_hashes(words[:2], 5)) == 1
    assert len(run_hashes([], 5)) == 0
    # The same on every machine, for ever: a kept row may depend on it.
    assert run_hashes(["cat"], 1).tolist() == [5548020672657136488]
    assert words_of("국어는 말 漢字かな x1_y2") == ["국어는", "말", "漢", "字", "か", "な", "x1_y2"]
