"""Prepared tokens on disk, and the endless stream that a run reads of them.

A split is a folder with `tokens.npy`, 1-D integers, documents one after the other, and where the
data were prepared `document_offsets.npy`, where each begins and the last ends. One that is packed
for fine-tuning has `labels.npy` too: what each position is to predict, which is not always the next
token. All are mapped into memory: what is read is the operating system's to keep or to drop.
"""

import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from titan_motif.components.curriculum.mixing import mix
from titan_motif.components.foreign_files import inside


class TokenFile:
    """A split's tokens.

    Args:
        at_least: tokens that are read at once, labels included
    Raises: ValueError if the folder has no tokens.npy, if that is no row of integers, if it holds
            too few tokens, or if the offsets or the labels do not belong to it
    """

    def __init__(self, folder: str | Path, at_least: int = 1) -> None:
        path = Path(folder) / "tokens.npy"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; a prepared split holds tokens.npy")
        self.path, self.tokens = path, _load(path)
        if self.tokens.ndim != 1 or self.tokens.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: {self.tokens.ndim}-D of {self.tokens.dtype}; a 1-D array of integers is "
                "needed"
            )
        labels = path.with_name("labels.npy")
        self.labels = _load(labels) if labels.is_file() else None
        at_least -= self.labels is not None  # the last position's label is not the next token
        if len(self.tokens) < at_least:
            raise ValueError(
                f"{path}: {len(self.tokens)} tokens; at least {at_least} are needed here"
            )
        offsets = path.with_name("document_offsets.npy")
        self.offsets = _load(offsets) if offsets.is_file() else None
        if self.offsets is not None and (
            self.offsets.ndim != 1
            or self.offsets.dtype != np.int64
            or len(self.offsets) < 2
            or self.offsets[0] != 0
            or self.offsets[-1] != len(self.tokens)
        ):
            raise ValueError(f"{offsets}: not the documents of {path} ({len(self.tokens)} tokens)")
        if self.offsets is not None and (number := _backwards(self.offsets)) is not None:
            length = int(self.offsets[number + 1]) - int(self.offsets[number])
            raise ValueError(f"{offsets}: damaged: document {number} has {length} tokens")
        if self.labels is not None and (
            self.labels.shape != self.tokens.shape or self.labels.dtype != np.int32
        ):
            raise ValueError(f"{labels}: not the labels of {path} ({len(self.tokens)} tokens)")
        if self.labels is not None and self.offsets is None:
            raise ValueError(f"{offsets}: no such file; packed samples need it")

    @property
    def is_packed(self) -> bool:
        """Return whether whole samples are packed into sequences, each position with its label."""
        return self.labels is not None

    def documents_at(self, begin: int, num_tokens: int) -> np.ndarray:  # (num_tokens,) int64
        """Return the number of the document that each token from a place on belongs to."""
        assert self.offsets is not None
        return np.searchsorted(self.offsets, np.arange(begin, begin + num_tokens), "right") - 1

    def __len__(self) -> int:
        return len(self.tokens)

    def sampled_range(self) -> tuple[int, int]:
        """Return the least and the largest id among up to 4 million tokens.

        A file of no more is read whole, of a larger one 64 windows, spaced evenly from its first
        token to its last: 16 MB at most, however large the file.
        """
        num_windows, length = 64, 2**16
        if len(self.tokens) <= num_windows * length:
            return int(self.tokens.min()), int(self.tokens.max())
        begins = np.linspace(0, len(self.tokens) - length, num_windows, dtype=np.int64)
        windows = [self.tokens[begin : begin + length] for begin in begins]
        return min(int(w.min()) for w in windows), max(int(w.max()) for w in windows)

    def fingerprint(self) -> str:
        """Return a hash of the number of tokens and of 64 windows of them, spaced evenly."""
        digest = hashlib.sha256(str(len(self.tokens)).encode())
        for begin in np.linspace(0, max(len(self.tokens) - 1024, 0), 64, dtype=np.int64):
            digest.update(self.tokens[begin : begin + 1024].astype("<i8").tobytes())
        return digest.hexdigest()[:16]


class DocumentPiece(NamedTuple):
    """A stretch of a document that a sequence holds."""

    epoch: int
    document: int | None
    """Its number in the split; None where the split tells no documents apart."""
    begin: int
    """Tokens of the document (of the split, where there is none) before the piece."""
    num_tokens: int


class TokenStream:
    """A split read over and over, from any position at once.

    Every epoch takes the file in cells of `cell_tokens`, the longest sequence of the run, in an
    order drawn from (seed, name, epoch): neighbours in a batch come from different documents, and a
    sequence that lies within a cell is a stretch of the file. Less than a cell is left out, now at
    the file's beginning, now at its end. The order is a permutation that is computed, not stored:
    memory does not grow with the file.

    Raises: ValueError if the file holds no cell, or if it is packed for another length
    """

    def __init__(self, file: TokenFile, name: str, seed: int, cell_tokens: int) -> None:
        self.file, self.name, self.cell_tokens = file, name, cell_tokens
        self.num_cells = len(file) // cell_tokens
        self.epoch_tokens = self.num_cells * cell_tokens
        if self.num_cells == 0:
            raise ValueError(
                f"{file.path}: {len(file)} tokens; the longest sequence needs {cell_tokens}"
            )
        if file.is_packed and self.epoch_tokens < len(file):
            raise ValueError(
                f"{file.path}: {len(file)} tokens, packed for another length than {cell_tokens}"
            )
        self._key = (seed << 32) ^ zlib.crc32(name.encode())

    @property
    def num_rows(self) -> int:
        """Rows of what is read: tokens, labels, and of packed samples the documents."""
        return 3 if self.file.is_packed else 2

    def read(self, position: int, num_tokens: int) -> np.ndarray:  # (num_rows, num_tokens) int64
        """Return the tokens from a position of the stream on, and for each its label.

        That is the next one of the file; after its last comes its first. Packed samples have labels
        of their own, and the third row says which token belongs to which.
        """
        tokens = self.file.tokens
        rows = np.empty((self.num_rows, num_tokens), dtype=np.int64)
        done = 0
        for _, begin, length in self._pieces(position, num_tokens):
            into = rows[:, done : done + length]
            into[0] = tokens[begin : begin + length]
            if self.file.is_packed:
                into[1] = self.file.labels[begin : begin + length]
                into[2] = self.file.documents_at(begin, length)
            else:
                after = tokens[begin + 1 : begin + length + 1]
                into[1, : len(after)] = after
                if len(after) < length:
                    into[1, -1] = tokens[0]
            done += length
        return rows

    def documents(self, position: int, num_tokens: int) -> list[DocumentPiece]:
        """Return what documents the tokens from a position on belong to."""
        found = []
        offsets = self.file.offsets
        for epoch, begin, length in self._pieces(position, num_tokens):
            if offsets is None:
                found.append(DocumentPiece(epoch, None, begin, length))
                continue
            document = int(np.searchsorted(offsets, begin, side="right")) - 1
            while length > 0:
                taken = min(int(offsets[document + 1]) - begin, length)
                if taken:
                    piece = DocumentPiece(epoch, document, begin - int(offsets[document]), taken)
                    found.append(piece)
                document, begin, length = document + 1, begin + taken, length - taken
        return found

    def _pieces(self, position: int, num_tokens: int) -> list[tuple[int, int, int]]:
        """Return (epoch, where in the file, tokens) of each stretch that lies together."""
        pieces = []
        while num_tokens > 0:
            epoch, offset = divmod(position, self.epoch_tokens)
            cell, within = divmod(offset, self.cell_tokens)
            key = mix(self._key ^ mix(epoch))
            left_out = key % (len(self.file) - self.epoch_tokens + 1)
            begin = left_out + permuted(cell, self.num_cells, key) * self.cell_tokens + within
            taken = min(self.cell_tokens - within, num_tokens)
            pieces.append((epoch, begin, taken))
            position, num_tokens = position + taken, num_tokens - taken
        return pieces


def permuted(index: int, size: int, key: int) -> int:
    """Return where an index goes in a permutation of range(size), drawn from the key.

    Equation: four rounds of a Feistel network over the next even number of bits, repeated until the
              result is below size (Black and Rogaway 2002, cycle walking)
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(4):
            left, right = right, left ^ (mix(key + (number << 60) + right) & mask)
        index = left << half | right
        if index < size:
            return index


def _load(path: Path) -> np.ndarray:
    """Return an array that is mapped, not read; an array of objects, which is a pickle, is none."""
    try:
        array = np.load(inside(path.parent, path.name), mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: cannot be read as an array: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: cannot be read as an array: it is an archive of several")
    return array


def _backwards(offsets: np.ndarray) -> int | None:
    """Return the first document that ends before it begins, reading 8 MB of offsets at a time."""
    step = 1 << 20
    for begin in range(0, len(offsets) - 1, step):
        piece = offsets[begin : begin + step + 1]
        wrong = piece[1:] < piece[:-1]
        if wrong.any():
            return begin + int(wrong.argmax())
    return None
