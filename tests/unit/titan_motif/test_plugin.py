"""What the recipe hands to torchtitan's seams."""

from types import SimpleNamespace

import pytest

import titan_motif.device  # noqa: F401
from titan_motif.config import JobConfig
from titan_motif.config_data import PhaseSettings
from titan_motif.plugin import build_dataloader, document_inputs


def test_the_model_is_told_of_documents_if_the_job_says_so():
    config, tokenizer = JobConfig(), SimpleNamespace(eos_id=3)
    assert document_inputs(tokenizer, config) is None
    config.training.mask_documents = True
    assert document_inputs(tokenizer, config) == (3, False)
    config.training.restart_positions = True
    assert document_inputs(tokenizer, config) == (3, True)


def test_a_tokenizer_without_an_end_of_documents_is_named():
    config = JobConfig()
    config.training.mask_documents = True
    config.model.hf_assets_path = "mine"
    message = "^training.mask_documents is true; the tokenizer in mine names no eos_token"
    with pytest.raises(ValueError, match=message):
        document_inputs(SimpleNamespace(eos_id=None), config)


def test_a_curriculum_that_cannot_be_planned_is_refused():
    """Under torchtitan's own entry nothing has checked the job before."""
    config = JobConfig()
    config.curriculum.phases = [PhaseSettings("all", until_share=0.5)]
    message = r"^curriculum\.phases\.1\.until_share is given; it needs curriculum\.total_tokens$"
    with pytest.raises(ValueError, match=message):
        build_dataloader(1, 0, SimpleNamespace(eos_id=None), config)
