"""The loader's global order: the same for any number of ranks, workers and restarts."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import titan_motif.device  # noqa: F401
from titan_motif.components.curriculum.loader import (
    DocumentInputs,
    GlobalOrder,
    PackedTokens,
    ValidationSequences,
    build_loader,
)

SEQ_LEN = 5
GLOBAL_BATCH = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """43 sequences of 5 tokens (and a rest of 3): token i is the number i."""
    np.save(tmp_path / "tokens.npy", np.arange(43 * SEQ_LEN + 3, dtype=np.uint16))
    return tmp_path


def loaders(folder: Path, ranks: int, num_workers: int = 0, seed: int = 1):
    return [
        build_loader(folder, SEQ_LEN, GLOBAL_BATCH // ranks // 2, seed, r, ranks, num_workers)
        for r in range(ranks)
    ]


def global_batches(parts, count: int, skip_state=None) -> list[list[int]]:
    """The first token of each sequence in each global batch (two micro-batches a rank), sorted."""
    iterators = [iter(part) for part in parts]
    found = []
    for _ in range(count):
        firsts = []
        for iterator in iterators:
            for inputs, labels in islice(iterator, 2):
                assert torch.equal(inputs["input"][:, 1:], labels[:, :-1])
                assert torch.equal(inputs["input"] + 1, labels)
                firsts += inputs["input"][:, 0].tolist()
        found.append(sorted(firsts))
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_global_batches_do_not_depend_on_the_number_of_ranks(folder: Path, ranks: int):
    expected = global_batches(loaders(folder, 1), 9)
    assert global_batches(loaders(folder, ranks), 9) == expected


def test_a_long_file_is_sampled_from_end_to_end(tmp_path: Path):
    num_tokens = 64 * 2**16 * 3
    tokens = np.lib.format.open_memmap(
        tmp_path / "tokens.npy", "w+", dtype=np.uint16, shape=(num_tokens,)
    )
    tokens[:] = 7
    tokens[-1] = 900
    assert PackedTokens(tmp_path, SEQ_LEN).sampled_range() == (7, 900)
    tokens[-1], tokens[0] = 7, 3
    assert PackedTokens(tmp_path, SEQ_LEN).sampled_range() == (3, 7)


def test_workers_read_ahead_as_far_as_is_asked(folder: Path, monkeypatch):
    from titan_motif.components.curriculum import loader

    asked = []

    def build(*arguments, **options):
        asked.append(options["prefetch_factor"])
        return StatefulDataLoader(*arguments, **options)

    monkeypatch.setattr(loader, "StatefulDataLoader", build)
    next(iter(build_loader(folder, SEQ_LEN, 2, 1, 0, 1, num_workers=1, prefetch_factor=5)))
    assert asked == [5]


def test_workers_change_nothing(folder: Path):
    expected = global_batches(loaders(folder, 2), 5)
    assert global_batches(loaders(folder, 2, num_workers=2), 5) == expected


def test_every_epoch_reads_each_sequence_once_in_another_order():
    order = GlobalOrder(43, seed=1)
    first, second = [order[n] for n in range(43)], [order[n] for n in range(43, 86)]
    assert sorted(first) == sorted(second) == list(range(43))
    assert first != second
    assert first != [GlobalOrder(43, seed=2)[n] for n in range(43)]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 6), (6, 1)])
@pytest.mark.parametrize("stop", [0, 1, 4, 8])
def test_a_resumed_run_reads_what_is_left(folder: Path, before: int, after: int, stop: int):
    whole = global_batches(loaders(folder, 1), 12)
    first = loaders(folder, before)
    done = global_batches(first, stop)
    states = [part.state_dict() for part in first]
    assert all(state == states[0] for state in states)
    second = loaders(folder, after)
    for part in second:
        part.load_state_dict(states[0])
    assert done + global_batches(second, 12 - stop) == whole


def test_what_workers_read_ahead_is_not_counted(folder: Path):
    (loader,) = loaders(folder, 1, num_workers=2)
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    assert loader.state_dict()["next_sequence"] == GLOBAL_BATCH


def test_a_position_in_another_order_is_refused(folder: Path):
    (loader,) = loaders(folder, 1)
    for change in ({"seed": 2}, {"seq_len": 6}, {"num_sequences": 44}):
        with pytest.raises(ValueError, match=f"loader's {next(iter(change))} is"):
            loader.load_state_dict(loader.state_dict() | change)


def test_bad_folders_are_named(folder: Path):
    with pytest.raises(ValueError, match=r"nothing.tokens.npy: no such file"):
        build_loader(folder / "nothing", 5, 1, 0, 0, 1)
    with pytest.raises(ValueError, match="218 tokens; one sequence needs 1001"):
        build_loader(folder, 1000, 1, 0, 0, 1)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_together_validate_each_sequence_once(folder: Path, ranks: int):
    parts = [ValidationSequences(folder, SEQ_LEN, 4, rank, ranks) for rank in range(ranks)]
    batches = [list(part) for part in parts]
    assert len({len(rank_batches) for rank_batches in batches}) == 1
    judged = torch.cat([labels[labels != -100] for rank in batches for _, labels in rank])
    assert sorted(judged.tolist()) == list(range(1, 43 * SEQ_LEN + 1))


def test_validation_stops_after_max_batches(folder: Path):
    part = ValidationSequences(folder, SEQ_LEN, 4, dp_rank=1, dp_world_size=2, max_batches=2)
    firsts = [inputs["input"][:, 0].tolist() for inputs, _ in part]
    assert firsts == [[20, 25, 30, 35], [60, 65, 70, 75]]


@pytest.mark.parametrize("restart", [False, True])
def test_documents_end_with_the_separator(tmp_path: Path, restart: bool):
    np.save(tmp_path / "tokens.npy", np.array([5, 0, 6, 7, 0, 0, 8, 9, 4, 3, 2], dtype=np.uint16))
    documents = DocumentInputs(separator=0, restart_positions=restart)
    sequences = ValidationSequences(tmp_path, 5, 2, 0, 1, documents=documents)
    ((inputs, labels),) = list(sequences)
    assert inputs["input"].tolist() == [[5, 0, 6, 7, 0], [0, 8, 9, 4, 3]]
    assert labels.tolist() == [[0, 6, 7, 0, 0], [8, 9, 4, 3, 2]]
    assert inputs["document_ids"].tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]
    if restart:
        assert inputs["positions"].tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 2, 3]]
    else:
        assert "positions" not in inputs
    loader = build_loader(tmp_path, 5, 2, 0, 0, 1, documents=documents)
    (first, _), *_ = islice(loader, 1)
    for row, ids in zip(first["input"].tolist(), first["document_ids"].tolist(), strict=True):
        assert ids == ([0, 0, 1, 1, 1] if row[0] == 5 else [0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("tokens", "ids", "positions"),
    [
        # A separator is the last token of its document.
        ([4, 9, 4, 4, 9, 4], [0, 0, 1, 1, 1, 2], [0, 1, 0, 1, 2, 0]),
        ([9, 9, 9], [0, 1, 2], [0, 0, 0]),
        ([9, 4, 4], [0, 1, 1], [0, 0, 1]),
        ([4, 4, 9], [0, 0, 0], [0, 1, 2]),
        ([4], [0], [0]),
    ],
    ids=str,
)
def test_what_the_model_is_told_of_documents(tokens, ids, positions):
    rows = torch.tensor([tokens, [4] * len(tokens)])  # each sequence has its own documents
    found = DocumentInputs(separator=9, restart_positions=True).of(rows)
    assert found["document_ids"].tolist() == [ids, [0] * len(tokens)]
    assert found["positions"].tolist() == [positions, list(range(len(tokens)))]
