"""Whole samples in sequences: each sample once, no sequence too long, little filling."""

import numpy as np
import pytest

from titan_motif.components.sft.packing import best_fit


def test_best_fit_packs_whole_samples_tightly():
    assert best_fit([6, 4, 3, 5, 2], 10) == [[0, 1], [3, 2, 4]]
    assert best_fit([], 10) == []
    lengths = np.random.default_rng(0).integers(1, 100, 2000).tolist()
    bins = best_fit(lengths, 100)
    assert sorted(sample for packed in bins for sample in packed) == list(range(2000))
    assert all(sum(lengths[sample] for sample in packed) <= 100 for packed in bins)
    assert sum(lengths) > 0.98 * 100 * len(bins)
    with pytest.raises(ValueError, match="sample 1 has 11 tokens; 1 to 10 are needed"):
        best_fit([3, 11], 10)
