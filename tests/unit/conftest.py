"""A tokenizer for the tests of prepared data."""

from pathlib import Path

import pytest

from titan_motif.components.curriculum.tokenizer import save_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Path:
    """The folder of a tokenizer of 280 entries."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny"
    save_tokenizer(train_tokenizer(["the cat sat on the mat and the rat ran " * 9], 280), folder)
    return folder
