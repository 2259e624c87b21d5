"""The mean of the last saved steps, fed back."""

from pathlib import Path

import torch

import titan_motif.device  # noqa: F401

# isort: split

from saved_jobs import flip_a_bit

from titan_motif.components.moving_average import feed_back, passes_multiple


def test_the_mean_of_the_last_steps_is_fed_back(job, folder: Path):
    writer, seen = job(), {}
    for step in (10, 20, 30):
        writer.train(step)
        seen[step] = writer.model.weight.detach().clone()
    writer.train(35)
    before = writer.model.weight.detach().clone()
    assert feed_back(writer.model, writer.manager, 30, 4) is None
    assert torch.equal(writer.model.weight, before)
    assert feed_back(writer.model, writer.manager, 29, 2) == [20, 10]
    assert torch.allclose(writer.model.weight, (seen[20] + seen[10]) / 2, rtol=1e-6)
    assert feed_back(writer.model, writer.manager, 30, 3) == [30, 20, 10]
    assert torch.allclose(writer.model.weight, sum(seen.values()) / 3, rtol=1e-6)
    flip_a_bit(folder / "step-20")
    assert feed_back(writer.model, writer.manager, 30, 3) is None
    assert feed_back(writer.model, writer.manager, 30, 2) == [30, 10]


def test_multiples_are_passed_once():
    passed = [passes_multiple(n, n + 3, 10) for n in range(0, 30, 3)]
    assert passed == [False, False, False, True, False, False, True, False, False, True]
