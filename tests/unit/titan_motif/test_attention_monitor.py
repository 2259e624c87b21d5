"""What is recorded of attention, when, and what becomes of it: figures, a warning, QK-clip."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch

import titan_motif.device  # noqa: F401

# isort: split
from torchtitan.components.optimizer import OptimizersContainer

from titan_motif.attention_monitor import AttentionMonitor
from titan_motif.components.step_gate import StepGate
from titan_motif.config import JobConfig, Optimizer
from titan_motif.kernels import key_heads
from titan_motif.model import FLAVORS, Motif2Model, Motif2ModelArgs
from titan_motif.optimizers import build_optimizers

TOKENS = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(0))


def small_model(ratio: int = 4, **changes) -> Motif2Model:
    shape = {
        "dim": 24,
        "n_layers": 2,
        "n_heads": 2 * (ratio + 1),
        "n_kv_heads": 2,
        "head_dim": 8,
        "hidden_dim": 20,
        "grouped_ratio": ratio,
        "vocab_size": 64,
        "max_seq_len": 64,
        "init_std": 0.3,
    }
    model = Motif2Model(Motif2ModelArgs(**shape | changes))
    model.init_weights()
    return model


def maps_of(model: Motif2Model, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Largest logits (layers, heads) and noise-to-signal ratios, from each layer's q, k, v."""
    largest, ratios = [], []
    ratio = model.model_args.grouped_ratio

    def look(module, inputs, output) -> None:
        from titan_motif.model.attention import rotate

        x, rotation, scalars, _, _ = inputs
        q, k, v = (
            projection(x).unflatten(-1, (-1, 8)).double()
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        q, k = rotate(q, rotation), rotate(k, rotation)
        heads = key_heads(q.shape[2], k.shape[2], ratio)
        logits = (q.transpose(1, 2) @ k[:, :, heads].transpose(1, 2).mT) / 8**0.5
        causal = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
        logits = logits.masked_fill(~causal, -math.inf)
        largest.append(logits.amax((0, 2, 3)))
        values = v.unflatten(2, (-1, max(2 * (ratio > 0), 1))).flatten(3)
        values = values[:, :, [h // 2 if ratio else h for h in heads]].transpose(1, 2)
        maps = (logits.softmax(-1) @ values).transpose(1, 2).unflatten(2, (-1, ratio + 1))
        if ratio:
            signal, noise = maps[:, :, :, :ratio], scalars.lam * maps[:, :, :, ratio:]
            ratios.append(noise.expand_as(signal).norm() / signal.norm())

    hooks = [b.attention.register_forward_hook(look) for b in model.layers.values()]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(largest), torch.stack(ratios) if ratios else None


def step(model: Motif2Model, container, tokens: torch.Tensor = TOKENS) -> None:
    for row in tokens:  # micro-batches
        model(row[None]).logsumexp(-1).sum().backward()
    container.step()
    container.zero_grad()


def logged(monitor: AttentionMonitor, step: int = 1, logs: bool = True, bound: float = 1.0) -> None:
    """Let a step be one that is logged, as the metrics of a run say."""
    config = JobConfig()
    config.metrics.noise_ratio_bound = bound
    monitor.report_to(SimpleNamespace(should_log=lambda step: logs, job_config=config))
    monitor.begin_step(step)


def optimizers(model: Motif2Model, **settings):
    config = Optimizer(name="AdamW", lr=0.0, weight_decay=0.0, implementation="for-loop")
    for name, value in settings.items():
        setattr(config, name, value)
    return build_optimizers([model], config, None)


def test_figures_are_those_of_all_micro_batches_of_a_logged_step():
    model = small_model()
    container = optimizers(model)
    logged(container.monitor)
    largest, _ = maps_of(model, TOKENS)
    ratios = torch.stack([maps_of(model, row[None])[1] for row in TOKENS]).amax(0)
    logged(container.monitor)  # what was looked at above is forgotten
    step(model, container)
    found = container.monitor.metrics()
    lams = model.scalars().lam.tolist()
    assert found["attention/max_logit"] == pytest.approx(largest.max().item(), rel=1e-5)
    for layer in range(2):
        assert found[f"attention_max_logit/layer_{layer}"] == pytest.approx(
            largest[layer].max().item(), rel=1e-5
        )
        assert found[f"attention_noise_over_signal/layer_{layer}"] == pytest.approx(
            ratios[layer].item(), rel=1e-5
        )
        assert found[f"attention_lambda/layer_{layer}"] == pytest.approx(lams[layer], rel=1e-6)
    assert "attention/clipped_heads" not in found
    assert container.monitor.metrics() == {}


def test_plain_attention_has_logits_and_no_noise():
    model = small_model(ratio=0, n_heads=6)
    container = optimizers(model)
    logged(container.monitor)
    step(model, container)
    largest, _ = maps_of(model, TOKENS)
    found = container.monitor.metrics()
    assert found["attention/max_logit"] == pytest.approx(largest.max().item(), rel=1e-5)
    assert not [name for name in found if "noise" in name or "lambda" in name]


def test_nothing_is_recorded_where_nobody_asks():
    model = small_model()
    container = optimizers(model)
    step(model, container)  # neither logged nor clipped
    assert (model.attention_record.maxima == -math.inf).all()
    assert container.monitor.metrics() == {}
    logged(container.monitor, 2)
    model.eval()
    model(TOKENS)  # a validation is no training pass
    assert (model.attention_record.maxima == -math.inf).all()


def test_clips_come_at_their_interval_and_are_counted():
    model = small_model()
    largest, _ = maps_of(model, TOKENS)
    threshold = largest[0].median().item()
    settings = {"qk_clip": True, "qk_clip_threshold": threshold, "qk_clip_interval": 3}
    container = optimizers(model, **settings)
    weight = model.layers["0"].attention.q_proj.weight
    before = weight.detach().clone()
    for _ in range(2):
        step(model, container)
    assert torch.equal(weight, before)
    step(model, container)
    rows = [not torch.equal(a, b) for a, b in zip(weight, before, strict=True)]
    clipped = (largest[0] > threshold).repeat_interleave(8).tolist()
    assert rows == clipped
    assert container.monitor.metrics()["attention/clipped_heads"] == (largest > threshold).sum()
    assert maps_of(model, TOKENS)[0][0].max() <= threshold * 1.001
    # A resumed run says which step it is at.
    container.monitor.begin_step(6)
    assert model.attention_record.is_recording
    container.monitor.begin_step(7)
    assert not model.attention_record.is_recording


def test_a_step_counts_once_where_torchtitans_own_container_was_built_before():
    """torch hooks the class whose container is built: a step that calls it would count twice."""
    model = small_model()
    OptimizersContainer([model], torch.optim.AdamW, {"lr": 1e-3})
    container = optimizers(model, qk_clip=True, qk_clip_interval=3)
    for number in range(1, 4):
        assert container.monitor.step == number
        step(model, container)


def test_after_a_clip_for_each_layer_no_head_is_above_the_threshold():
    """One clip settles the first layer; the next layer's input changed with it."""
    model = small_model()
    threshold = maps_of(model, TOKENS)[0].median().item()
    container = optimizers(model, qk_clip=True, qk_clip_threshold=threshold)
    step(model, container)
    assert maps_of(model, TOKENS)[0][0].max() <= threshold * 1.001
    step(model, container)
    assert maps_of(model, TOKENS)[0].max() <= threshold * 1.001


def test_the_default_recipe_clips_with_parallel_muon():
    model = Motif2Model(FLAVORS["debug"])
    model.init_weights()
    config = Optimizer(name="ParallelMuon", lr=0.0, qk_clip=True, qk_clip_threshold=0.5)
    container = build_optimizers([model], config, None)
    model(TOKENS).sum().backward()
    container.step()
    assert container.monitor.metrics()["attention/clipped_heads"] > 0


def test_a_step_that_was_skipped_clips_nothing():
    """The batch that broke a gradient is not to leave its mark on the weights."""
    model = small_model()
    config = Optimizer(name="ParallelMuon", lr=0.1, qk_clip=True, qk_clip_threshold=0.5)
    container = build_optimizers([model], config, None)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for is_broken in (True, False):
        model(TOKENS).logsumexp(-1).sum().backward()
        if is_broken:
            model.norm.weight.grad[0] = math.nan
        container.step()
        container.zero_grad()
        same = [torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
        assert all(same) if is_broken else not any(same)
        assert (container.monitor.metrics()["attention/clipped_heads"] > 0) != is_broken


def test_logits_that_are_not_finite_scale_nothing():
    """Of layer 0, head 0 sees NaN; head 1, which shares its keys, still is too large."""
    model = small_model()
    container = optimizers(model, qk_clip=True, qk_clip_threshold=0.5)
    weights = [
        projection.weight
        for block in model.layers.values()
        for projection in (block.attention.q_proj, block.attention.k_proj)
    ]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        weights[0][0, 0] = math.nan
    model(TOKENS)
    container.monitor()
    q, k, *_ = weights
    assert torch.equal(q[1:8], before[0][1:8])
    assert q[8:16].norm() < before[0][8:16].norm()
    assert all(weight.isfinite().all() for weight in (q[1:], k, *weights[2:]))


def test_noise_that_outweighs_the_signal_is_told_once(caplog):
    model = small_model(lam_init=(0.3, 5.0))
    monitor = AttentionMonitor(model, Optimizer(), StepGate([], torch.device("cpu")))
    for number, will_warn in enumerate((True, False)):
        logged(monitor, number + 1)
        model(TOKENS)
        monitor()
        with caplog.at_level(logging.WARNING):
            found = monitor.metrics()
        ratio = found["attention_noise_over_signal/layer_1"]
        assert ratio > 1 > found["attention_noise_over_signal/layer_0"]
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == will_warn
        if will_warn:
            assert lines[0].startswith(
                f"lambda times the noise maps is as large as the signal maps {ratio:.2f} times in "
                "layer 1 (metrics.noise_ratio_bound is 1.0)"
            )
        caplog.clear()
