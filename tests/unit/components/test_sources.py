"""Prepared tokens: files that are refused, and the endless stream."""

import re
from pathlib import Path

import numpy as np
import pytest

from titan_motif.components.curriculum.sources import TokenFile, TokenStream, permuted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Token i is the number i; 60 documents, the 4th of them empty."""
    lengths = np.random.default_rng(0).integers(1, 40, 60)
    lengths[3] = 0
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    np.save(tmp_path / "tokens.npy", np.arange(offsets[-1], dtype=np.uint16))
    np.save(tmp_path / "document_offsets.npy", offsets)
    return tmp_path


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 1000])
def test_a_permutation_reaches_everything_once(size: int):
    found = [permuted(i, size, key=9) for i in range(size)]
    assert sorted(found) == list(range(size))
    if size > 60:
        assert found != [permuted(i, size, key=10) for i in range(size)]
        assert np.mean(np.abs(np.diff(found))) > size / 5  # neighbours are torn apart


@pytest.mark.parametrize("cell_tokens", [1, 16, 500])
def test_every_epoch_reads_whole_cells_once_in_an_order_of_its_own(folder: Path, cell_tokens: int):
    file = TokenFile(folder)
    stream, size = TokenStream(file, "a", 3, cell_tokens), len(file) // cell_tokens * cell_tokens
    tokens, labels = stream.read(0, 20 * size)
    assert (labels == (tokens + 1) % len(file)).all()  # the next in the file, wherever it lies
    cells = tokens.reshape(-1, cell_tokens)
    assert (np.diff(cells, axis=1) == 1).all()  # a cell is a stretch of the file
    epochs = tokens.reshape(20, size)
    for epoch in epochs:
        begin = epoch.min()
        assert (np.sort(epoch) == begin + np.arange(size)).all()
    # What an epoch leaves out, another one reads.
    assert len(set(tokens.tolist())) >= size + 0.7 * (len(file) - size)
    assert (epochs[0] != epochs[1]).mean() > 0.9
    for other in (TokenStream(file, "b", 3, cell_tokens), TokenStream(file, "a", 4, cell_tokens)):
        assert (other.read(0, size)[0] != epochs[0]).mean() > 0.9
    random = np.random.default_rng(1)
    for position, count in zip(
        random.integers(0, 2 * size, 50), random.integers(1, size, 50), strict=True
    ):
        found, _ = stream.read(int(position), int(count))
        assert (found == tokens[position : position + count]).all()


def test_a_file_shorter_than_a_sequence_is_refused(folder: Path):
    with pytest.raises(
        ValueError, match=r"tokens.npy: \d+ tokens; the longest sequence needs 9999"
    ):
        TokenStream(TokenFile(folder), "a", 3, 9999)


def test_a_files_fingerprint_changes_with_its_content(folder: Path):
    before = TokenFile(folder).fingerprint()
    assert before == TokenFile(folder).fingerprint()
    tokens = np.load(folder / "tokens.npy")
    np.save(folder / "tokens.npy", tokens[::-1].copy())
    assert TokenFile(folder).fingerprint() != before


def test_documents_tell_where_every_token_comes_from(folder: Path):
    file = TokenFile(folder)
    stream, size = TokenStream(file, "a", 3, 16), len(file) // 16 * 16
    for position in range(0, 2 * size, 7):
        tokens, _ = stream.read(position, 33)
        pieces = stream.documents(position, 33)
        found = [file.offsets[p.document] + p.begin + np.arange(p.num_tokens) for p in pieces]
        assert np.concatenate(found).tolist() == tokens.tolist()
        assert all(piece.document != 3 for piece in pieces)
        assert {piece.epoch for piece in pieces} <= {position // size, (position + 32) // size}
    (folder / "document_offsets.npy").unlink()
    whole = TokenStream(TokenFile(folder), "a", 3, 16)
    (piece,) = whole.documents(0, 16)
    assert piece == (0, None, int(whole.read(0, 1)[0][0]), 16)


def test_what_is_no_split_is_refused_by_name(folder: Path):
    def message(**files: np.ndarray | bytes) -> str:
        for name, content in files.items():
            path = folder / f"{name}.npy"
            path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
        with pytest.raises(ValueError, match=f"^{re.escape(str(folder))}.*$") as caught:
            TokenFile(folder, at_least=5)
        return str(caught.value)

    offsets = message(document_offsets=np.array([0, 5, 9]))
    assert "document_offsets.npy: not the documents of" in offsets
    assert "cannot be read as an array" in message(document_offsets=b"")
    assert "2-D of int64; a 1-D array of integers" in message(tokens=np.zeros((2, 2), np.int64))
    assert "1-D of float64" in message(tokens=np.zeros(9))
    assert "4 tokens; at least 5 are needed here" in message(tokens=np.zeros(4, np.uint16))
    whole = (folder / "tokens.npy").read_bytes()
    assert "cannot be read as an array" in message(tokens=whole[:-3])
    (folder / "tokens.npy").unlink()
    assert "no such file; a prepared split holds tokens.npy" in message()


def test_a_long_file_is_sampled_from_end_to_end(tmp_path: Path):
    num_tokens = 64 * 2**16 * 3
    tokens = np.lib.format.open_memmap(
        tmp_path / "tokens.npy", "w+", dtype=np.uint16, shape=(num_tokens,)
    )
    tokens[:] = 7
    tokens[-1] = 900
    assert TokenFile(tmp_path).sampled_range() == (7, 900)
    tokens[-1], tokens[0] = 7, 3
    assert TokenFile(tmp_path).sampled_range() == (3, 7)
