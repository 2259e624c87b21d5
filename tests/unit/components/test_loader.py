"""The loader: one stream of sequences for any number of ranks, workers and restarts."""

import json
import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import titan_motif.device  # noqa: F401

# isort: split
import functools
import operator

from titan_motif.components.curriculum import loader as loader_module
from titan_motif.components.curriculum.loader import (
    CurriculumLoader,
    DocumentInputs,
    LoaderError,
    describe_run,
)
from titan_motif.components.curriculum.micro_batches import SequenceReader, Share
from titan_motif.components.curriculum.order import GlobalOrder
from titan_motif.components.curriculum.schedule import Phase, plan_run
from titan_motif.components.curriculum.sources import TokenFile, TokenStream

SOURCES = [("a", "a", 1.0), ("b1", "b", 0.5), ("b2", "b", 0.5)]
FIRST, LAST = {"a": 0.7, "b": 0.3}, {"a": 0.2, "b": 0.8}
PHASES = [
    Phase("short", 2400, 5, 60, 60, FIRST, LAST),  # 40 steps of 12
    Phase("long", 5400, 10, 120, 240, LAST, LAST),  # 12 to 24 sequences
    Phase("end", 6000, 10, 100, 100, {"b": 1.0}, {"b": 1.0}),  # 10
]
PLAN = plan_run(PHASES)


@pytest.fixture(scope="module")
def streams(tmp_path_factory) -> list[TokenStream]:
    """Three sources: token i of source s is the number 10,000 s + i; read about twice."""
    root, found = tmp_path_factory.mktemp("sources"), []
    for number, size in enumerate((1303, 977, 1011)):
        folder = root / str(number)
        folder.mkdir()
        np.save(folder / "tokens.npy", np.arange(size, dtype=np.uint16) + 10_000 * number)
        found.append(TokenStream(TokenFile(folder), SOURCES[number][0], 1, cell_tokens=10))
    return found


def make(streams, rank=0, ranks=1, tokens=-1, seed=1, plan=PLAN, **options) -> CurriculumLoader:
    return CurriculumLoader(
        plan, SOURCES[: len(streams)], streams, seed, Share(rank, ranks, tokens), **options
    )


def read_steps(parts: list[CurriculumLoader], count: int) -> list[list[tuple[int, ...]]]:
    """The sequences of each step in their order, put together from all ranks."""
    iterators = [iter(part) for part in parts]
    found = []
    for _ in range(count):
        step = parts[0].plan.step(parts[0].next_step)
        rows = []
        for _ in range(parts[0].share.micro_batches(step)):
            for iterator in iterators:
                inputs, labels = next(iterator)
                assert inputs["input"].shape == labels.shape
                assert inputs["input"].shape[1] == step.seq_len
                for row, label in zip(inputs["input"], labels, strict=True):
                    if label[0] != -100:
                        assert torch.equal(row, row[0] + torch.arange(len(row)))  # one stretch
                        assert torch.equal(label, row + 1) or label[-1] % 10_000 == 0
                        rows.append(tuple(row.tolist()))
                    else:  # filling: what the step ends with
                        assert (label == -100).all()
                        filling.append(tuple(row.tolist()))
        assert len(rows) == step.num_sequences
        found.append(rows)
    return found


filling: list[tuple[int, ...]] = []


@pytest.fixture(scope="module")
def whole(streams) -> list[list[tuple[int, ...]]]:
    """Every step, sequence by sequence."""
    reader = SequenceReader(GlobalOrder(PLAN, SOURCES, 1), streams)
    steps = [PLAN.step(i) for i in range(PLAN.num_steps)]
    return [
        [tuple(reader.read(s.first_sequence + i)[0].tolist()) for i in range(s.num_sequences)]
        for s in steps
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("tokens", [-1, 10, 33])
def test_steps_do_not_depend_on_ranks_and_micro_batches(streams, whole, ranks: int, tokens: int):
    filling.clear()
    parts = [make(streams, rank, ranks, tokens) for rank in range(ranks)]
    assert read_steps(parts, PLAN.num_steps) == whole
    assert set(filling) <= {rows[-1] for rows in whole}
    share = parts[0].share
    expected = sum(share.filling_rows(PLAN.step(i)) for i in range(PLAN.num_steps))
    assert len(filling) == expected
    for part in parts:
        assert next(iter(part), None) is None  # the plan is done


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(streams, whole, workers: int):
    parts = [make(streams, rank, 2, workers={"num_workers": workers}) for rank in range(2)]
    assert read_steps(parts, PLAN.num_steps) == whole


def test_a_run_stopped_anywhere_goes_on_with_any_ranks_and_workers(streams, whole):
    random = np.random.default_rng(0)
    for stop in random.choice(PLAN.num_steps + 1, 20, replace=False).tolist():
        before, after, workers = random.integers(1, 5, 3).tolist()
        first = [make(streams, rank, before, 20) for rank in range(before)]
        done = read_steps(first, stop)
        states = [part.state_dict() for part in first]
        assert all(state == states[0] for state in states)
        options = {"workers": {"num_workers": workers}} if stop % 4 == 0 else {}
        second = [make(streams, rank, after, **options) for rank in range(after)]
        for part in second:
            part.load_state_dict(states[0])
        assert done + read_steps(second, PLAN.num_steps - stop) == whole


def test_what_workers_read_ahead_is_not_counted(streams):
    part = make(streams, tokens=30, workers={"num_workers": 2})  # 2 micro-batches a step
    iterator = iter(part)
    for _ in range(5):
        next(iterator)
    state = part.state_dict()
    assert (state["step"], state["sequence"]) == (2, 24)
    assert sum(past["cursor"] for past in json.loads(state["sources"]).values()) == 24 * 5
    assert all(len(past["content"]) == 16 for past in json.loads(state["sources"]).values())


def test_another_past_is_refused_and_another_future_is_not(streams):
    part = make(streams)
    list(islice(part, 45))
    state = part.state_dict()
    with pytest.raises(ValueError, match="loader's seed is 2; the checkpoint was made with 1, and"):
        make(streams, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="longest sequence is 10; the checkpoint was made with 16"):
        make(streams).load_state_dict(state | {"cell_tokens": 16})
    past = json.loads(state["sources"])
    past["b1"]["content"] = "other"
    with pytest.raises(
        ValueError, match=r"content of b1 is .*; the checkpoint was made with other"
    ):
        make(streams).load_state_dict(state | {"sources": json.dumps(past)})
    more = plan_run([replace(PHASES[0], weights_end={"a": 0.4, "b": 0.6}), *PHASES[1:]])
    with pytest.raises(ValueError, match="position in a after 45 steps is"):
        make(streams, plan=more).load_state_dict(state)
    shorter = plan_run([replace(PHASES[0], until_tokens=2340), *PHASES[1:]])
    with pytest.raises(
        ValueError, match="sequences of 45 steps is 547; the checkpoint was made with 541"
    ):
        make(streams, plan=shorter).load_state_dict(state | {"sequence": 541})
    future = plan_run([*PHASES[:2], replace(PHASES[2], until_tokens=9000)])
    changed = make(streams, plan=future)
    changed.load_state_dict(state)
    assert changed.next_sequence == part.next_sequence


def test_a_job_without_phases_may_change_its_batch(streams):
    def plan(batch: int):
        return plan_run([Phase("all", 40 * batch * 5, 5, batch * 5, batch * 5, FIRST, FIRST)])

    part = make(streams, plan=plan(6))
    rows = functools.reduce(operator.iadd, read_steps([part], 7), [])
    other = make(streams, plan=plan(10))
    other.load_state_dict(part.state_dict())
    assert other.next_sequence == 42
    rows += functools.reduce(operator.iadd, read_steps([other], 3), [])
    reader = SequenceReader(GlobalOrder(plan(6), SOURCES, 1), streams)
    assert rows == [tuple(reader.read(n)[0].tolist()) for n in range(72)]


def test_nothing_is_left_where_the_plan_is_shorter_than_the_run(streams):
    part = make(streams)
    part.load_state_dict(part.state_dict() | {"step": 1000})
    assert next(iter(part), None) is None


def test_steps_are_described_by_what_was_read(streams):
    part = make(streams, ranks=5)
    figures = part.report(0, 40)
    assert figures["data/tokens_seen"] == 2400
    assert (figures["data/seq_len"], figures["data/batch_tokens"]) == (5, 60)
    assert figures["data/padding"] == pytest.approx(3 / 15)  # 12 sequences on 5 ranks
    assert figures["mixture/a"] == pytest.approx(0.45, abs=2 / 480)
    assert figures["mixture/a"] + figures["mixture/b"] == pytest.approx(1)
    assert figures["mixture_planned/a"] == pytest.approx(0.2, abs=0.01)
    assert figures["epoch/a"] == pytest.approx(0.45 * 2400 / 1300, abs=0.02)
    assert part.report(PLAN.num_steps, PLAN.num_steps) == {}
    lines = describe_run(part, 40)
    assert lines[0].startswith("data: a   group a: 1,303 tokens, 1,0")
    assert "'short' from step 1: 12 x 5 tokens a step, 1 micro-batch of 3 on each rank" in lines[3]
    assert "3 of 15 rows of such a step are filling: 5 ranks cannot share 12" in lines[4]


def test_a_killed_worker_is_told_with_its_sources(streams):
    part = make(streams, workers={"num_workers": 2})
    iterator = iter(part)
    next(iterator)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    workers = [
        int(pid) for pid in children if b"spawn" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises((LoaderError, RuntimeError)) as caught:
        for _ in iterator:
            pass
    error = caught.value if isinstance(caught.value, LoaderError) else part.failure(caught.value)
    assert "\n" not in str(error)
    assert "failed on rank 0, which reads the sources a, b1, b2: DataLoader worker" in str(error)
    state = part.state_dict()
    resumed = make(streams)
    resumed.load_state_dict(state)
    assert resumed.next_step == part.next_step > 0


def test_workers_read_ahead_as_far_as_is_asked(streams, monkeypatch):
    asked = []

    def build(*arguments, **options):
        asked.append(options["prefetch_factor"])
        return StatefulDataLoader(*arguments, **options)

    monkeypatch.setattr(loader_module, "StatefulDataLoader", build)
    next(iter(make(streams, workers={"num_workers": 1, "prefetch_factor": 5})))
    assert asked == [5]


@pytest.mark.parametrize("restart", [False, True])
def test_documents_end_with_the_separator(tmp_path: Path, restart: bool):
    np.save(tmp_path / "tokens.npy", np.array([5, 0, 6, 7, 0, 0, 8, 9, 4, 3], dtype=np.uint16))
    plan = plan_run([Phase("all", 10, 5, 10, 10, {"a": 1.0}, {"a": 1.0})])
    streams = [TokenStream(TokenFile(tmp_path), "a", 0, cell_tokens=5)]
    documents = DocumentInputs(separator=0, restart_positions=restart)
    ((inputs, _),) = make(streams, plan=plan, documents=documents)
    rows = sorted(zip(inputs["input"].tolist(), inputs["document_ids"].tolist(), strict=True))
    assert rows == [([0, 8, 9, 4, 3], [0, 1, 1, 1, 1]), ([5, 0, 6, 7, 0], [0, 0, 1, 1, 1])]
    if restart:
        positions = dict(
            zip(map(tuple, inputs["input"].tolist()), inputs["positions"].tolist(), strict=False)
        )
        assert positions == {(5, 0, 6, 7, 0): [0, 1, 0, 1, 2], (0, 8, 9, 4, 3): [0, 0, 1, 2, 3]}
    else:
        assert "positions" not in inputs
