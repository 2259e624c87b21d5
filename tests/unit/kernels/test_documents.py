"""Bounds of packed documents against loops over tokens."""

import pytest
import torch

from titan_motif.kernels import Documents, documents_of
from titan_motif.kernels.documents import allowed_keys

ROWS = [
    [0],
    [5, 5, 5, 5],
    [0, 0, 1, 0],  # equal ids in two runs are two documents
    [3, 2, 1, 0],
    [-1, -1, 2**40, 2**40, -1],
    [0, 1, 1, 1, 2, 2, 0, 0],
]


def loop_bounds(ids: list[int]) -> tuple[list[int], list[int]]:
    """First and last position of each token's run, by walking from the token both ways."""
    first, last = [], []
    for position in range(len(ids)):
        begin = end = position
        while begin > 0 and ids[begin - 1] == ids[position]:
            begin -= 1
        while end + 1 < len(ids) and ids[end + 1] == ids[position]:
            end += 1
        first.append(begin)
        last.append(end)
    return first, last


def random_rows(seed: int, high: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, (4, 23), generator=generator).tolist()


@pytest.mark.parametrize("rows", [*([row] for row in ROWS), *(random_rows(s, 3) for s in (0, 1))])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_a_document_is_a_run_of_equal_ids(rows, dtype):
    if dtype == torch.int32 and max(map(max, rows)) > 2**31:
        rows = [[min(i, 9) for i in row] for row in rows]
    found = documents_of(torch.tensor(rows, dtype=dtype))
    assert isinstance(found, Documents)
    assert found.first.dtype == found.last.dtype == torch.int32
    expected = [loop_bounds(row) for row in rows]
    assert found.first.tolist() == [first for first, _ in expected]
    assert found.last.tolist() == [last for _, last in expected]


def test_ids_that_are_a_view():
    ids = torch.tensor(random_rows(2, 2))
    expected = documents_of(ids.T.contiguous())
    for found, bounds in zip(documents_of(ids.T), expected, strict=True):
        assert torch.equal(found, bounds)


def test_allowed_keys():
    rows = [[0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 2, 2, 3, 3]]
    found = allowed_keys(documents_of(torch.tensor(rows)))
    assert found.shape == (3, 1, 6, 6)
    for index, row in enumerate(rows):
        for query in range(6):
            for key in range(6):
                is_same = key <= query and len(set(row[key : query + 1])) == 1
                assert found[index, 0, query, key].item() == is_same, (index, query, key)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_no_tokens(shape):
    first, last = documents_of(torch.zeros(shape, dtype=torch.long))
    assert first.shape == last.shape == shape
    assert allowed_keys(Documents(first, last)).shape == (shape[0], 1, shape[1], shape[1])


def test_ids_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"document_ids has the shape \(4,\); \(batch, seq\)"):
        documents_of(torch.zeros(4, dtype=torch.long))
