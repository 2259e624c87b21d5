"""Tokenizers, and one thread for small models."""

from pathlib import Path

import pytest
import torch

from titan_motif.components.preparation.tokenizer import save_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Path:
    """The folder of a tokenizer of 280 entries."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny"
    save_tokenizer(train_tokenizer(["the cat sat on the mat and the rat ran " * 9], 280), folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """The folder of a tokenizer of 290 entries, for networks of 300."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = ["the cat and the dog see the rain in spain stay mainly on the plain " * 3]
    save_tokenizer(train_tokenizer(text, 290), folder)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Several threads only wait for each other on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
