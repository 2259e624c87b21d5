"""Parallel Muon on ranks, against a reference of one process that shares no code with it."""

import layouts
import pytest
import torch

A_B_C = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
MOMENTUM = 0.95
RANKS = {"one": 1, "fsdp2": 2, "fsdp3": 3, "tp2": 2}
UNEVEN = {"n_heads": 5, "n_kv_heads": 2}  # 20 rows over 3 ranks; 8 rows of keys: 3, 3, 2
EMPTY = {"n_heads": 5, "n_kv_heads": 2, "head_dim": 2}  # 4 rows of keys over 3 ranks: 2, 2, 0


def gradient_of(name: str, shape, step: int) -> torch.Tensor:
    seed = int.from_bytes(name.encode(), "big") % 2**31 + step
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) / 10


def reference_updates(gradients: list[torch.Tensor], nesterov: bool) -> list[torch.Tensor]:
    """What each step takes off a matrix at a learning rate of one, by the formula."""
    momentum, updates = torch.zeros_like(gradients[0]), []
    for gradient in gradients:
        momentum = MOMENTUM * momentum + gradient
        x = gradient + MOMENTUM * momentum if nesterov else momentum
        is_tall = x.shape[0] > x.shape[1]
        x = x.T if is_tall else x
        x = x / x.norm()
        for a, b, c in A_B_C:
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.T if is_tall else x
        updates.append(0.2 * max(x.shape) ** 0.5 * x)
    return updates


def build(layout: str, arguments: dict, options: dict, settings: dict | None = None):
    """A model with parameters of zero, and its optimizer at a learning rate of one."""
    from titan_motif.components.muon import ParallelMuon
    from titan_motif.components.muon.routing import route
    from titan_motif.model.initialization import plain_name

    model, _ = layouts.build(layout, **arguments)
    named = {plain_name(name): p for name, p in model.named_parameters()}
    routes = route({name: p.shape for name, p in named.items()})
    groups = [
        {
            "params": [(name, p) for name, p in named.items() if routes[name] == algorithm],
            "algorithm": algorithm,
            "lr": 1.0,
            "weight_decay": 0.0,
            **(settings or {} if algorithm == "muon" else {}),
        }
        for algorithm in ("muon", "adamw")
    ]
    with torch.no_grad():
        for p in named.values():
            p.zero_()
    return named, routes, ParallelMuon(groups, **{"mode": "exact"} | options)


def set_gradients(named, step: int, change=lambda name, gradient: gradient) -> None:
    """Give every parameter this rank's part of its gradient, without a collective."""
    from torch.distributed.tensor import DTensor

    from titan_motif.components.muon.layout import regions_of

    rank = torch.distributed.get_rank()
    for name, p in named.items():
        whole = change(name, gradient_of(name, p.shape, step))
        if whole is None:
            p.grad = None
            continue
        part = regions_of(p)[rank].of(whole).clone() if p.ndim == 2 else local_part(p, whole)
        p.grad = DTensor.from_local(
            part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride(), run_check=False
        )


def local_part(p, whole: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    for dim, (size, start) in enumerate(zip(shape, offset, strict=True)):
        whole = whole.narrow(dim, start, size) if size else whole.narrow(dim, 0, 0)
    return whole.clone()


def updates(layout: str, arguments: dict, options: dict, num_steps: int = 2, **settings):
    """Each step's update of every parameter, gathered; and the routes."""
    named, routes, optimizer = build(layout, arguments, options, settings)
    found = []
    for step in range(num_steps):
        before = {name: p.full_tensor().clone() for name, p in named.items()}
        set_gradients(named, step)
        optimizer.step()
        found.append({name: before[name] - p.full_tensor() for name, p in named.items()})
    return found, routes


def largest_error(found, routes, nesterov: bool = True) -> float:
    largest = 0.0
    for name, algorithm in routes.items():
        shape = found[0][name].shape
        gradients = [gradient_of(name, shape, step) for step in range(len(found))]
        if algorithm == "muon":
            expected = reference_updates(gradients, nesterov)
        else:
            expected = adamw_updates(gradients)
        for one, other in zip(found, expected, strict=True):
            largest = max(largest, ((one[name] - other).norm() / other.norm()).item())
    return largest


def adamw_updates(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    p = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = torch.optim.AdamW([p], lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    found = []
    for gradient in gradients:
        before = p.detach().clone()
        p.grad = gradient.clone()
        optimizer.step()
        found.append(before - p.detach())
    return found


CASES = {
    "one": ("one", {}, {}),
    "fsdp2": ("fsdp2", {}, {}),
    "fsdp3 uneven": ("fsdp3", UNEVEN, {}),
    "fsdp3 empty": ("fsdp3", EMPTY, {}),
    "hsdp2x2 each replica": ("hsdp2x2", {}, {"owner_scope": 1}),
    "hsdp2x2 all replicas": ("hsdp2x2", {}, {"owner_scope": 2}),
    "tp2": ("tp2", {}, {}),
    "fsdp2_tp2": ("fsdp2_tp2", {}, {}),
    "fsdp2 distributed": ("fsdp2", {}, {"mode": "distributed"}),
    "hsdp2x2 distributed": ("hsdp2x2", {}, {"mode": "distributed"}),
}


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_one_process(rank_pool, case: str):
    layout, arguments, options = CASES[case]
    is_exact = "mode" not in options
    options = options | {"chunk_size": 3}
    results = rank_pool.run(updates, RANKS.get(layout, 4), layout, arguments, options)
    for found, routes in results:
        assert sorted(set(routes.values())) == ["adamw", "muon"]
        error = largest_error(found, routes)
        assert error < (1e-6 if is_exact else 0.03), error
        for name in found[0]:  # every rank's parameters are the same bits
            assert torch.equal(found[1][name], results[0][0][1][name])


def bits_by_chunk_size(layout: str, arguments: dict) -> bool:
    chunked = [
        updates(layout, arguments, {"chunk_size": size}, num_steps=1)[0][0] for size in (1, 4, None)
    ]
    return all(
        torch.equal(chunked[0][name], other[name]) for other in chunked for name in chunked[0]
    )


def test_exact_mode_has_the_same_bits_for_every_chunk_size(rank_pool):
    assert all(rank_pool.run(bits_by_chunk_size, 3, "fsdp3", UNEVEN))


@pytest.mark.parametrize("mode", ["parallel", "distributed"])
def test_default_precision_stays_within_the_bound_of_bfloat16(rank_pool, mode: str):
    options = {"mode": mode, "chunk_size": 5}
    for nesterov in (True, False):
        results = rank_pool.run(updates, 2, "fsdp2", {}, options, nesterov=nesterov)
        found, routes = results[0]
        # Rounding to eight bits in five steps; without momentum's second part it would be 0.3.
        assert 1e-4 < largest_error(found, routes, nesterov) < 0.03


def after_a_bad_step(layout: str) -> dict:
    """A good step, one with a NaN on the last rank, a good one; and the same without the second."""
    from titan_motif.components.muon.layout import local

    last = torch.distributed.get_world_size() - 1

    def spoil(name: str, gradient: torch.Tensor) -> torch.Tensor:
        if name == "layers.1.attention.o_proj.weight":
            gradient = gradient.clone()
            gradient[-1, -1] = torch.nan if last else 0.0  # in the last rank's part
        return gradient

    def state_of(named, optimizer):
        tensors = {name: local(p).clone() for name, p in named.items()}
        for name, p in named.items():
            for key, value in optimizer.state[p].items():
                tensors[f"{name} {key}"] = local(value).clone()
        return tensors

    def same(a, b) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    decay = {"weight_decay": 0.5}
    named, _, optimizer = build(layout, {}, {}, decay)
    set_gradients(named, 0)
    optimizer.step()
    before = state_of(named, optimizer)
    set_gradients(named, 1, spoil)
    optimizer.step()
    unchanged = same(before, state_of(named, optimizer))
    optimizer.gate.settle()
    skipped = optimizer.gate.num_skipped
    set_gradients(named, 2)
    optimizer.step()
    mended = state_of(named, optimizer)
    named, _, optimizer = build(layout, {}, {}, decay)
    for step in (0, 2):
        set_gradients(named, step)
        optimizer.step()
    as_if_not_done = same(state_of(named, optimizer), mended)
    return {"unchanged": unchanged, "skipped": skipped, "as_if_not_done": as_if_not_done}


@pytest.mark.parametrize("layout", ["fsdp2", "hsdp2x2"])
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(rank_pool, layout: str):
    for result in rank_pool.run(after_a_bad_step, RANKS.get(layout, 4), layout):
        assert result == {"unchanged": True, "skipped": 1, "as_if_not_done": True}


def bad_steps_until_it_stops(max_skipped: int) -> tuple[int, str]:
    named, _, optimizer = build("fsdp2", {}, {"max_skipped_steps": max_skipped})
    is_last = torch.distributed.get_rank() == 1
    for step in range(10):
        is_bad = is_last and step != 1
        set_gradients(named, step, lambda _, g, is_bad=is_bad: g / 0 if is_bad else g)
        try:
            optimizer.step()
        except RuntimeError as error:
            return step, f"{type(error).__name__}: {error}"
    return 10, ""


def test_too_many_bad_steps_in_a_row_stop_the_run_on_all_ranks(rank_pool):
    # Step 0 is bad, 1 is good, 2 to 4 are bad; what step 4 was is known when step 5 begins.
    for step, message in rank_pool.run(bad_steps_until_it_stops, 2, 2):
        assert step == 5
        assert message == (
            "TooManySkippedSteps: 3 steps in a row changed nothing, and "
            "step_check.max_skipped_steps allows 2; step 4: "
            "not finite: the gradient of layers.0.attention.q_proj.weight and 32 more"
        )


def with_missing_gradients(layout: str, rank_without: int | None) -> dict:
    """Two steps; in the second a matrix and a scalar lack gradients on a rank, or on all."""
    names = ("layers.0.feed_forward.up_proj.weight", "norm.weight")
    rank = torch.distributed.get_rank()
    named, routes, optimizer = build(layout, {}, {}, {"weight_decay": 0.1})
    assert [routes[name] for name in names] == ["muon", "adamw"]

    def drop(name: str, gradient: torch.Tensor):
        is_missing = name in names and rank_without in (None, rank)
        return None if is_missing else gradient

    set_gradients(named, 0)
    optimizer.step()
    before = {name: p.full_tensor().clone() for name, p in named.items()}
    momentum = optimizer.state[named[names[0]]]["momentum"]
    kept = momentum.full_tensor().clone()
    set_gradients(named, 1, drop)
    optimizer.step()
    moved = {name: (p.full_tensor() - before[name]).norm().item() for name, p in named.items()}
    return {
        "dropped": [moved[name] for name in names],
        "others": min(value for name, value in moved.items() if name not in names),
        "momentum_kept": torch.equal(kept, momentum.full_tensor()),
        "adamw_steps": int(optimizer.state[named[names[1]]]["step"]),
    }


def test_a_parameter_without_gradients_is_left_alone(rank_pool):
    for result in rank_pool.run(with_missing_gradients, 2, "fsdp2", None):
        assert result["dropped"] == [0, 0]
        assert result["momentum_kept"]
        assert result["adamw_steps"] == 1
        assert result["others"] > 0


def test_a_gradient_that_one_rank_lacks_is_zero_there(rank_pool):
    """No rank waits for another, and all ranks do the step."""
    results = rank_pool.run(with_missing_gradients, 2, "fsdp2", 1)
    for result in results:
        assert min(result["dropped"]) > 0
        assert not result["momentum_kept"]
        assert result["adamw_steps"] == 2
    assert results[0] == results[1]


def save_after_two_steps(layout: str, folder: str) -> None:
    named, _, optimizer = build(layout, {}, {})
    for step in (0, 1):
        set_gradients(named, step)
        optimizer.step()
    torch.distributed.checkpoint.save(saved_state(optimizer), checkpoint_id=folder)


def saved_state(optimizer) -> dict:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    class Named(torch.nn.Module):
        """The parameters under names that do not depend on the layout's wrappers."""

        def __init__(self) -> None:
            super().__init__()
            self.parameter = torch.nn.ParameterDict(
                {name.replace(".", "/"): p for p, name in optimizer.names.items()}
            )

    options = StateDictOptions(flatten_optimizer_state_dict=True)
    return {"optimizer": get_optimizer_state_dict(Named(), optimizer, options=options)}


def third_update(layout: str, folder: str):
    named, routes, optimizer = build(layout, {}, {}, {"lr": 0.5})
    state = saved_state(optimizer)
    torch.distributed.checkpoint.load(state, checkpoint_id=folder)
    plain = {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}
    numbers = [p for group in optimizer.param_groups for p in group["params"]]
    for number, p in enumerate(numbers):
        prefix = f"state.parameter.{optimizer.names[p].replace('.', '/')}."
        plain["state"][number] = {
            key.removeprefix(prefix): value
            for key, value in state["optimizer"].items()
            if key.startswith(prefix)
        }
    optimizer.load_state_dict(plain)
    assert optimizer.param_groups[0]["lr"] == 0.5  # the job's, not the checkpoint's
    set_gradients(named, 2)
    optimizer.step()
    return {name: -p.full_tensor() for name, p in named.items()}, routes


def test_state_saved_on_four_ranks_continues_on_other_layouts(rank_pool, tmp_path):
    rank_pool.run(save_after_two_steps, 4, "hsdp2x2", str(tmp_path))
    for layout in ("fsdp2", "fsdp3", "fsdp2_tp2"):
        for found, routes in rank_pool.run(
            third_update, RANKS.get(layout, 4), layout, str(tmp_path)
        ):
            for name, algorithm in routes.items():
                gradients = [gradient_of(name, found[name].shape, step) for step in range(3)]
                if algorithm == "muon":
                    expected = 0.5 * reference_updates(gradients, nesterov=True)[2]
                else:
                    expected = adamw_updates(gradients)[2]
                error = (found[name] - expected).norm() / expected.norm()
                assert error < 1e-6, (layout, name, error)


def collectives_of_a_step(layout: str, options: dict) -> tuple[dict[str, int], int]:
    """Names and counts of all collectives of a step, and the plan's chunks."""
    named, _, optimizer = build(layout, {}, {"mode": "parallel", "chunk_size": 4} | options)
    set_gradients(named, 0)
    with layouts.CountCollectives() as count:
        optimizer.step()
    (plan,) = optimizer.plans
    return dict(count.found), len(plan.chunks)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("fsdp2", {}),
        ("hsdp2x2", {"owner_scope": 1}),
        ("hsdp2x2", {"owner_scope": 2}),
        ("fsdp2_tp2", {}),
    ],
    ids=str,
)
def test_a_step_has_one_exchange_each_way_a_chunk_and_nothing_hidden(rank_pool, layout, options):
    for found, num_chunks in rank_pool.run(
        collectives_of_a_step, RANKS.get(layout, 4), layout, options
    ):
        assert num_chunks == 4  # 14 matrices
        assert found == {"alltoall_base_": 2 * num_chunks, "allreduce_": 1}


def updates_of_replicas(scope: int) -> tuple[list[torch.Tensor], tuple, bool]:
    """A step on matrices that each of four ranks holds whole; the ranks that exchange."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    from titan_motif.components.muon import ParallelMuon

    mesh = init_device_mesh("cpu", (4,))
    parameters = []
    for index, shape in enumerate([(6, 10), (12, 5), (4, 4)]):
        whole = DTensor.from_local(torch.zeros(shape), mesh, [Replicate()])
        parameters.append(torch.nn.Parameter(whole))
        gradient = gradient_of(str(index), shape, 0)
        parameters[-1].grad = DTensor.from_local(gradient, mesh, [Replicate()])
    group = {"params": parameters, "algorithm": "muon", "lr": 1.0, "weight_decay": 0.0}
    optimizer = ParallelMuon([group], mode="exact", owner_scope=scope, chunk_size=2)
    optimizer.step()
    is_own = [g is not torch.distributed.group.WORLD for g in optimizer.exchange_groups]
    return [-p.to_local() for p in parameters], optimizer.plans[0].ranks, all(is_own)


def test_groups_of_replicas_that_are_no_axis_of_the_mesh(rank_pool):
    results = rank_pool.run(updates_of_replicas, 4, 2)
    assert [ranks for _, ranks, _ in results] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    for found, _, has_own_group in results:
        assert has_own_group
        for index, update in enumerate(found):
            gradient = gradient_of(str(index), update.shape, 0)
            (expected,) = reference_updates([gradient], nesterov=True)
            assert (update - expected).norm() / expected.norm() < 1e-6


def test_distributed_mode_sends_nothing_back(rank_pool):
    for found, num_chunks in rank_pool.run(
        collectives_of_a_step, 2, "fsdp2", {"mode": "distributed"}
    ):
        assert found == {"alltoall_base_": num_chunks, "allreduce_": 1}
