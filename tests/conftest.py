"""Fixtures for all tests: the pool of ranks, and small built-in corpora."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "distributed"))
from pool import RankPool


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="write the stored losses of tests/golden anew"
    )


@pytest.fixture(scope="session")
def rank_pool(tmp_path_factory):
    """Four gloo workers that live as long as the test run; started when first asked for."""
    pool = RankPool(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory) -> Path:
    """A built-in corpus of 0.4 MB with 512 tokens, made by the command."""
    folder = tmp_path_factory.mktemp("corpus") / "builtin"
    command = [sys.executable, "-m", "titan_motif.corpus", "--output", str(folder)]
    subprocess.run([*command, "--vocab-size", "512", "--megabytes", "0.4"], check=True)
    return folder
