"""Where documents begin and end in packed sequences: what attention has to know of them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Documents(NamedTuple):
    """For each token the positions of its document's first and last token in the sequence."""

    first: Tensor  # (batch, seq) int32
    last: Tensor  # (batch, seq) int32


def documents_of(document_ids: Tensor) -> Documents:
    """Return the bounds of documents; a document is a run of equal ids, whatever the ids are.

    Shapes: document_ids (batch, seq) integers -> (batch, seq) int32, twice
    Raises: ValueError for ids of another shape
    """
    if document_ids.ndim != 2:
        raise ValueError(f"document_ids has the shape {tuple(document_ids.shape)}; (batch, seq)")
    positions = torch.arange(document_ids.shape[1], device=document_ids.device)
    changes = document_ids[:, 1:] != document_ids[:, :-1]  # between a token and the next one
    begins = torch.nn.functional.pad(changes, (1, 0), value=True)
    ends = torch.nn.functional.pad(changes, (0, 1), value=True)
    first = torch.where(begins, positions, 0).cummax(1).values
    beyond = document_ids.shape[1]
    last = torch.where(ends, positions, beyond).flip(1).cummin(1).values.flip(1)
    return Documents(first.int(), last.int())


def allowed_keys(documents: Documents) -> Tensor:
    """Return which keys each query attends to: of its own document, up to itself.

    Shapes: -> (batch, 1, seq, seq) bool: made where nothing better is to be had
    """
    positions = torch.arange(documents.first.shape[1], device=documents.first.device)
    return ((positions <= positions[:, None]) & (positions >= documents.first[..., None]))[:, None]
