"""The command line of a tiny run."""

from pathlib import Path

import pytest
from whole_runs import ROOT, SMALL


@pytest.fixture
def arguments(small_corpus: Path, tmp_path: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(ROOT)
    return [
        *SMALL,
        *("--training.dataset_path", str(small_corpus)),
        *("--model.hf_assets_path", str(small_corpus / "tokenizer")),
        *("--job.dump_folder", str(tmp_path / "run")),
    ]
