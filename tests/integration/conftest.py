"""The command line of a tiny run."""

from pathlib import Path

import pytest
from whole_runs import ROOT, command_line


@pytest.fixture
def arguments(small_corpus: Path, tmp_path: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(ROOT)
    return command_line(small_corpus, tmp_path / "run")
