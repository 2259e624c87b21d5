"""Which rank of a machine prints why a run ends."""

import pytest

from titan_motif.components.curriculum.loader import LoaderError
from titan_motif.train import report

ALONE = LoaderError("this rank has no data", is_alone=True)


@pytest.mark.parametrize(
    ("rank", "local_rank", "error", "silent", "prints"),
    [
        (0, 0, "all know", (), True),
        (1, 1, "all know", (), False),
        (5, 1, ALONE, (), True),
        (5, 1, "rank 4 is stopped", (4,), True),
        (6, 2, "rank 4 is stopped", (4,), False),
        (6, 2, "ranks 4 and 5 are stopped", (4, 5), True),
        (8, 0, "rank 4 is stopped", (4,), True),  # on another machine
    ],
)
def test_one_rank_of_a_machine_prints(rank, local_rank, error, silent, prints, monkeypatch, capsys):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    report(error, silent)
    assert capsys.readouterr().err == (f"error: {error}\n" if prints else "")
