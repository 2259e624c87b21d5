"""The held-out sequences: each judged once by any number of ranks, by group."""

from pathlib import Path

import numpy as np
import pytest
import torch

import titan_motif.device  # noqa: F401

# isort: split
import functools
import operator

from torchtitan.config import JobConfig

from titan_motif.components.curriculum.loader import DocumentInputs
from titan_motif.components.validation import ValidationSequences, validation_groups

SEQ_LEN = 5


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """31 and 12 sequences of 5 tokens, and rests: token i of folder s is 1000 s + i."""
    found = [tmp_path / name for name in ("first", "second")]
    for number, (folder, size) in enumerate(zip(found, (31 * 5 + 3, 12 * 5 + 1), strict=True)):
        folder.mkdir()
        np.save(folder / "tokens.npy", np.arange(size, dtype=np.uint16) + 1000 * number)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_together_validate_each_sequence_once(folders, ranks: int):
    parts = [ValidationSequences(folders, SEQ_LEN, 4, rank, ranks) for rank in range(ranks)]
    batches = [list(part) for part in parts]
    assert len({len(rank_batches) for rank_batches in batches}) == 1
    judged = torch.cat([labels[labels != -100] for rank in batches for _, labels in rank])
    expected = [*range(1, 31 * 5 + 1), *range(1001, 1001 + 12 * 5)]
    assert sorted(judged.tolist()) == expected
    (whole,) = [torch.cat([labels[labels != -100] for _, labels in parts[0].of_all_ranks()])]
    assert sorted(whole.tolist()) == expected


def test_validation_stops_after_max_batches(folders):
    part = ValidationSequences(folders[:1], SEQ_LEN, 4, dp_rank=1, dp_world_size=2, max_batches=2)
    firsts = [inputs["input"][:, 0].tolist() for inputs, _ in part]
    assert firsts == [[20, 25, 30, 35], [60, 65, 70, 75]]
    everything = [inputs["input"][:, 0].tolist() for inputs, _ in part.of_all_ranks()]
    assert sorted(functools.reduce(operator.iadd, everything, [])) == list(range(0, 80, 5))


def test_groups_share_the_steps_by_their_sequences(folders):
    config = JobConfig()
    config.validation.seq_len, config.validation.local_batch_size = SEQ_LEN, 2
    groups = {"a": folders[:1], "b": folders[1:]}
    for steps, expected in ((-1, (16, 6)), (4, (3, 1)), (1, (1, 1))):
        config.validation.steps = steps
        parts = validation_groups(config, groups, 0, 1)
        assert tuple(map(len, parts.values())) == expected


@pytest.mark.parametrize("restart", [False, True])
def test_documents_are_told_as_in_training(tmp_path: Path, restart: bool):
    np.save(tmp_path / "tokens.npy", np.array([5, 0, 6, 7, 0, 0, 8, 9, 4, 3, 2], dtype=np.uint16))
    documents = DocumentInputs(separator=0, restart_positions=restart)
    ((inputs, labels),) = ValidationSequences([tmp_path], 5, 2, 0, 1, documents=documents)
    assert inputs["input"].tolist() == [[5, 0, 6, 7, 0], [0, 8, 9, 4, 3]]
    assert labels.tolist() == [[0, 6, 7, 0, 0], [8, 9, 4, 3, 2]]
    assert inputs["document_ids"].tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert ("positions" in inputs) == restart


def test_a_split_that_is_too_short_is_named(folders):
    with pytest.raises(ValueError, match=r"second.tokens.npy: 61 tokens; at least 101 are needed"):
        ValidationSequences(folders, 100, 1, 0, 1)
