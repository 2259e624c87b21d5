"""Evaluation at intervals of a run: the figures of `titan-motif evaluate`, training as without."""

import contextlib
import importlib.util
import json
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from whole_runs import ROOT, elsewhere, losses, run

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import cli
from titan_motif.evaluation import during_training
from titan_motif.evaluation.loading import load_model
from titan_motif.evaluation.results import values_of

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: pip install -e '.[eval]'",
)
STEPS = ["--training.steps", "5", "--checkpoint.interval", "2"]
ON = ["--evaluation.enable", "--evaluation.freq", "2", "--evaluation.tasks"]


def size_of(model: torch.nn.Module) -> float:
    return sum(float(p.double().abs().sum()) for p in model.parameters())


class StandIn:
    """Stands for the benchmarks: measures weights, and disturbs every random generator."""

    def __init__(self, wanted, tokenizer_folder, settings):
        self.wanted, self.limit = wanted, settings["limit"]

    def model(self, network, ranks):
        return SimpleNamespace(network=network, ranks=ranks)

    def complete(self, model, groups):
        self.groups = groups

    def run(self, model):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        sizes = model.ranks.gather_object(size_of(model.network))
        if sizes is None:
            return None
        assert len(set(sizes)) == 1
        size = {"value": sizes[0], "stderr": None}
        task = {"metrics": {"size": size}, "samples": self.limit, "shots": 0, "version": 1}
        name = f"{self.wanted[0].name}_{'_'.join(self.groups)}"
        return {"tasks": {name: task}, "cut_requests": 0, "max_length": 9, "seconds": 0.5}


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Put it in place of lm-evaluation-harness."""
    benchmarks = SimpleNamespace(Benchmarks=StandIn, Settings=dict)
    modules = {"titan_motif.evaluation.benchmarks": benchmarks}
    with (
        mock.patch.dict("sys.modules", modules),
        mock.patch("titan_motif.evaluation.during_training.require_harness"),
        mock.patch("titan_motif.config_checks.check_evaluation", return_value=()),
    ):
        yield


def run_with_stand_in(arguments: list[str], root: str, stop_after: int | None = None) -> list[str]:
    """Run a job on this rank; return its log."""
    with stand_in():
        return run(arguments, root, stop_after)


def evaluated(log: list[str]) -> list[str]:
    return [line for line in log if line.startswith("evaluation at step")]


def test_a_run_is_evaluated_at_intervals_and_once_at_a_step(
    rank_pool, arguments: list[str], tmp_path: Path
):
    arguments = [*arguments, *STEPS]
    rank_pool.run(run, 2, elsewhere(arguments, tmp_path / "without"), str(ROOT))

    arguments = [*arguments, *ON, "perplexity", "--evaluation.limit", "7"]
    results = tmp_path / "run" / "evaluation"
    (log, other) = rank_pool.run(run_with_stand_in, 2, arguments, str(ROOT), 4)
    assert evaluated(log) == [f"evaluation at step {n}, 0.5 s" for n in (2, 4)]
    assert [line.split() for line in log[log.index(evaluated(log)[0]) :][1:3]] == [
        ["task", "metric", "value", "stderr", "samples", "shots"],
        ["perplexity_all", "size", f"{values_at(results, 2):.4f}", "-", "7", "0"],
    ]
    assert evaluated(other) == []
    (results / "step-4.json").unlink()  # as of a run that ended after it had saved
    (log, _) = rank_pool.run(run_with_stand_in, 2, arguments, str(ROOT))
    assert evaluated(log) == [f"evaluation at step {n}, 0.5 s" for n in (4, 5)]
    (log, _) = rank_pool.run(run_with_stand_in, 2, arguments, str(ROOT))
    assert evaluated(log) == []

    assert losses(tmp_path / "run") == losses(tmp_path / "without")
    assert {path.name for path in results.iterdir()} == {f"step-{n}.json" for n in (2, 4, 5)}
    for n in (2, 4, 5):
        saved = load_model(tmp_path / "run" / "checkpoint" / f"step-{n}")
        assert values_at(results, n) == pytest.approx(size_of(saved), rel=1e-12)
    shown = {}
    for folder in (tmp_path / "run" / "tb").iterdir():  # each start's, named by the minute
        events = EventAccumulator(str(folder)).Reload()
        label = "evaluation/perplexity_all/size"
        if label in events.Tags()["scalars"]:
            shown |= {e.step: e.value for e in events.Scalars(label)}
    assert shown == {n: pytest.approx(values_at(results, n)) for n in (2, 4, 5)}


def values_at(results: Path, step: int) -> float:
    (value,) = values_of(json.loads((results / f"step-{step}.json").read_text())).values()
    return value


# ---- under the harness


def run_watched(arguments: list[str], root: str) -> int:
    """Run a job on this rank; return how many of its whole models are there after they served."""
    gather, made, alive = during_training.gathered_model, [], []

    def watched(*given):
        alive.extend(model() for model in made if model() is not None)
        whole = gather(*given)
        made.append(weakref.ref(whole))
        return whole

    with mock.patch.object(during_training, "gathered_model", watched):
        run(arguments, root)
    assert len(made) == 3
    return len(alive) + sum(model() is not None for model in made)


@needs_harness
def test_figures_are_those_of_evaluate(rank_pool, arguments: list[str], tmp_path: Path):
    arguments = [*arguments, *STEPS]
    rank_pool.run(run, 2, elsewhere(arguments, tmp_path / "without"), str(ROOT))
    limits = {"limit": 4, "batch_size": 3, "max_length": 256, "max_new_tokens": 3, "num_fewshot": 1}
    tasks = "sums,perplexity,needle"
    chosen = [word for name, n in limits.items() for word in (f"--evaluation.{name}", str(n))]
    assert rank_pool.run(run_watched, 2, [*arguments, *ON, tasks, *chosen], str(ROOT)) == [0, 0]
    assert losses(tmp_path / "run") == losses(tmp_path / "without")

    for n in (2, 5):
        file = tmp_path / "evaluate.json"
        command = ["evaluate", str(tmp_path / "run" / "checkpoint" / f"step-{n}"), "--tasks", tasks]
        command += [word for name, n in limits.items() for word in (f"--{name}", str(n))]
        assert cli.main([*command, "--device", "cpu", "--json", str(file)]) == 0
        expected = json.loads(file.read_text())
        found = json.loads((tmp_path / "run" / "evaluation" / f"step-{n}.json").read_text())
        assert values_of(found) == pytest.approx(values_of(expected), abs=1e-5)
        assert found.keys() == expected.keys()
        own = {"checkpoint", "tasks", "ranks", "seconds"}
        assert {k: v for k, v in found.items() if k not in own} == {
            k: v for k, v in expected.items() if k not in own
        }
        assert (found["step"], found["ranks"], found["checkpoint"]) == (n, 2, None)
