"""The memory of a step: by hand, against what blocks keep, and against a step on fake tensors.

Fake tensors have sizes and no data, so that whole steps of the large model's width can be followed,
storage by storage, on a laptop. The Triton operators take part with what they say of their outputs.
"""

import dataclasses
import sys

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import titan_motif.device  # noqa: F401

# isort: split
from torch._inductor.compile_fx import compile_fx
from torchtitan.distributed import ParallelDims

from titan_motif.activations import BlockForm, Kept, kept_bytes
from titan_motif.components.float8 import convert_to_float8
from titan_motif.config import JobConfig
from titan_motif.kernels import launch
from titan_motif.memory import Group, Groups, Job, Parts, largest_batch, moments, peak
from titan_motif.model import FLAVORS, Motif2Model, Motif2ModelArgs
from titan_motif.model.initialization import plain_name
from titan_motif.model.scalars import Scalars
from titan_motif.parallelize import parallelize
from titan_motif.plan_memory import Planned, job_of
from titan_motif.recomputation import checkpoint_activations
from titan_motif.simulation import simulated_ranks

MODES: dict[Kept, tuple[str, str]] = {
    "all": ("none", "op"),
    "products": ("selective", "products"),
    "op": ("selective", "op"),
    "input": ("full", "op"),
}


# ---- by hand

SMALL = Motif2ModelArgs(
    dim=64,
    n_layers=3,
    n_heads=10,
    n_kv_heads=4,
    head_dim=16,
    hidden_dim=128,
    grouped_ratio=4,
    vocab_size=1000,
)
# Of a token: q 160, k and v 64 each, 8 signal heads of 32, 2 noise heads of 32.
ALL_BYTES = 2 * (4 * 64 + 160 + 2 * 64 + 2 * 256 + 64 + 3 * 128) + 4 * (10 + 3)
PRODUCTS_BYTES = 2 * (64 + 160 + 2 * 64 + 256 + 64 + 64 + 2 * 128) + 4 * 10
INPUT_BYTES = 2 * 64


def small_job(**changes) -> Job:
    """Four ranks, in which a block has 1000 elements, the embedding 800, and the head 900."""
    job = Job(
        args=SMALL,
        form=BlockForm("triton", is_compiled=True),
        kept=("all",) * 3,
        groups=Groups(
            block=Group(1000, 250),
            embedding=Group(800, 200),
            head=Group(900, 225),
            scalars=Group(40, 10),
        ),
        state_elements=2 * (3 * 250 + 200 + 225 + 10),
        exchange_bytes=7777,
        ranks=4,
        parameter_bytes=4,
        reduce_bytes=4,
        gathered_bytes=2,
        accumulates=False,
        keeps_gathered=False,
        has_replicas=False,
        loss_chunk_tokens=16,
        compiles_loss=True,
    )
    return dataclasses.replace(job, **changes)


def test_the_table_of_a_block_by_hand():
    form = BlockForm("triton", is_compiled=True)
    assert kept_bytes(SMALL, form, "all") == ALL_BYTES
    assert kept_bytes(SMALL, form, "products") == PRODUCTS_BYTES
    assert kept_bytes(SMALL, form, "input") == INPUT_BYTES
    eager = BlockForm("triton", is_compiled=False)  # keeps down's result, which nobody reads
    assert kept_bytes(SMALL, eager, "products") == PRODUCTS_BYTES + 2 * 64


def test_the_moments_of_a_step_by_hand():
    found = moments(small_job(), tokens=32)
    resident = {"parameters": 4 * 1185, "optimizer": 4 * 2 * 1185}
    kept = 32 * ALL_BYTES
    wide = 32 * 64 * 2  # a tensor of the residual stream's width
    assert found["loss"] == Parts(
        **resident,
        activations=3 * kept + 3 * wide,  # hidden states around the last norm, and their gradient
        unsharded=2 * 2 * 900 + 4 * 64_000,  # gathered, its buffer; the gradient over two chunks
        logits=2 * 16 * 1000,
    )
    assert found["head's gradient"] == Parts(
        **resident,
        activations=3 * kept + 2 * wide,
        unsharded=2 * 900 + 4 * 64_000 + 2 * 900 + 2 * 1000,  # the last block is gathered ahead
    )
    # Of its backward pass: gradients of the output, of gate and of up; one weight's gradient.
    at_work = kept + 32 * 2 * (64 + 2 * 128)
    assert found["last block"] == Parts(
        **resident,
        gradients=4 * 225,
        activations=2 * kept + at_work,
        unsharded=2 * (1000 + 1000 + 64 * 128) + 4 * 900,
    )
    assert found["first block"] == Parts(
        **resident,
        gradients=4 * (225 + 2 * 250),
        activations=at_work,
        unsharded=2 * (1000 + 800 + 64 * 128) + 4 * 1000,
    )
    assert found["embedding"] == Parts(
        **resident,
        gradients=4 * (225 + 3 * 250),
        activations=wide,
        unsharded=2 * 2 * 800 + 4 * 1000,
    )
    assert found["optimizer"] == Parts(**resident, gradients=4 * 1185, exchange=7777)


def test_an_evaluation_holds_a_whole_model_beside_what_stays():
    assert "evaluation" not in moments(small_job(), tokens=32)
    found = moments(small_job(evaluation_bytes=4321), tokens=32)["evaluation"]
    assert found == Parts(parameters=4 * 1185, optimizer=4 * 2 * 1185, evaluation=4321)


def test_one_rank_gathers_nothing_ahead_and_copies_what_it_reduces_once():
    groups = Groups(Group(1000, 1000), Group(800, 800), Group(90_000, 90_000), Group())
    found = moments(small_job(ranks=1, groups=groups), tokens=16)
    assert found["loss"].unsharded == 2 * 90_000 + 2 * 64_000  # one chunk: not summed in float32
    assert found["head's gradient"].unsharded == 4 * 90_000
    assert found["head's gradient"].gradients == 4 * 90_000


def test_earlier_micro_batches_leave_all_gradients():
    found = moments(small_job(accumulates=True), tokens=32)
    assert {parts.gradients for parts in found.values()} == {4 * 1185}
    more = moments(small_job(accumulates=True, keeps_gathered=True), tokens=32)["loss"]
    assert more.unsharded - found["loss"].unsharded == 2 * (3 * 1000 + 800)


def test_tensor_parallelism_cuts_all_but_the_gathered_inputs_of_products():
    whole, half = (
        kept_bytes(SMALL, BlockForm("triton", is_compiled=True, tensor_parallel=n), "all")
        for n in (1, 2)
    )
    gathered = 2 * 64 * 2 + 3 * 4  # two norms, and PolyNorm's sums
    assert half - gathered == (whole - gathered) / 2
    form = BlockForm("triton", is_compiled=True, tensor_parallel=2)
    loss = moments(small_job(form=form), tokens=32)["loss"]
    assert loss.logits == 2 * 16 * 500
    assert loss.activations == 3 * 32 * half + 3 * 32 * 64 * 2


def test_fp8_keeps_the_inputs_of_products_in_a_byte_where_they_are_compiled():
    def kept(recipe, is_compiled=True):
        form = BlockForm("triton", is_compiled=is_compiled, recipe=recipe)
        return kept_bytes(SMALL, form, "all")

    assert kept("rowwise") == kept("tensorwise") == kept(None) - (2 * 64 + 256 + 128)
    assert kept("rowwise_with_gw_hp") == kept(None)
    assert kept("rowwise", is_compiled=False) == kept(None, is_compiled=False)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_what_is_recomputed_is_not_kept(is_compiled: bool):
    form = BlockForm("triton", is_compiled)
    kept = [kept_bytes(FLAVORS["12_7b"], form, mode) for mode in MODES]
    assert kept == sorted(kept, reverse=True)
    peaks = [
        peak(small_job(form=form, kept=(mode,) * 3, loss_chunk_tokens=1), 64)[1].total
        for mode in MODES
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) > 1


def test_the_largest_batch_fits_and_the_next_one_does_not():
    for limit in (600_000, 1_000_000, 12_345_678):
        sequences = largest_batch(small_job(), seq_len=8, limit_bytes=limit)
        assert peak(small_job(), 8 * sequences)[1].total <= limit
        assert peak(small_job(), 8 * (sequences + 1))[1].total > limit
    assert largest_batch(small_job(), seq_len=8, limit_bytes=1000) == 0


# ---- against PyTorch, on fake tensors


class Watch(TorchDispatchMode):
    """Follows the storages of all tensors that operators take or give, and the bytes alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, StorageWeakRef] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):
                storage = getattr(leaf, "_local_tensor", leaf).untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage)
        if function.namespace != "profiler" and not function.is_view:
            self.peak_bytes = max(self.peak_bytes, self.alive_bytes())
        return result

    def alive_bytes(self, but: frozenset[int] = frozenset()) -> int:
        """Return what is alive now: FSDP gives and takes the bytes of tensors that stay."""
        self.storages = {k: ref for k, ref in self.storages.items() if not ref.expired()}
        kept = self.storages.keys() - but
        return sum(torch.UntypedStorage._new_with_weak_ptr(k).nbytes() for k in kept)


@pytest.fixture
def triton_on_cpu(monkeypatch) -> None:
    """Let the Triton operators take CPU tensors; on fake ones no kernel is launched."""
    monkeypatch.setattr(launch, "_problem", lambda x: None)
    attention = sys.modules["titan_motif.kernels.attention"]
    monkeypatch.setattr(attention, "attention_problem", lambda *arguments: None)


def one_block(flavor: str, attention: str, mode: Kept) -> tuple[nn.Module, Motif2ModelArgs]:
    """Return a block on meta, in bfloat16, with activation checkpointing; and its arguments."""
    args = dataclasses.replace(FLAVORS[flavor], n_layers=1, kernels="triton", attention=attention)
    config = JobConfig()
    checkpoint = config.activation_checkpoint
    checkpoint.mode, checkpoint.selective_ac_option = MODES[mode]
    with torch.device("meta"):
        model = Motif2Model(args).to(torch.bfloat16)
    checkpoint_activations(model, config)
    return model.layers["0"], args


def materialize(block: nn.Module) -> None:
    for module in block.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=p.dtype)))


def inputs_of(args: Motif2ModelArgs, batch: int, seq: int) -> tuple:
    def scalar(*shape: int) -> Tensor:
        return torch.empty(shape, requires_grad=True)

    x = torch.empty(batch, seq, args.dim, dtype=torch.bfloat16, requires_grad=True)
    angles = tuple(torch.empty(1, seq, 1, args.head_dim // 2) for _ in range(2))
    return x, angles, Scalars(scalar(), scalar(), scalar(3), scalar(1)), None, None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attention", ["triton", "sdpa"])
@pytest.mark.parametrize("flavor", ["12_7b", "2_6b", "100m_standard"])
def test_an_uncompiled_block_keeps_what_the_table_says(
    triton_on_cpu, flavor: str, attention: str, mode: Kept
):
    batch, seq = 2, 1024
    block, args = one_block(flavor, attention, mode)
    with FakeTensorMode():
        materialize(block)
        inputs = inputs_of(args, batch, seq)
        given = [*block.parameters(), *tree_leaves(inputs[:3])]
        with Watch() as watch:
            out, _ = block(*inputs)
        others = frozenset(t.untyped_storage()._cdata for t in (*given, out))
        kept = watch.alive_bytes(but=others) + inputs[0].nbytes
    expected = batch * seq * kept_bytes(args, BlockForm(attention, is_compiled=False), mode)
    assert kept == pytest.approx(expected, rel=1e-3)


class _Stop(Exception):
    """What was compiled is not run."""


def test_a_compiled_block_keeps_what_the_table_says(triton_on_cpu):
    torch._dynamo.reset()
    batch, seq, recipe = 1, 512, "rowwise"
    block, args = one_block("12_7b", "sdpa", "all")
    convert_to_float8(block, recipe)
    materialize(block)  # no page of it is touched
    shapes = {tuple(p.shape) for p in block.parameters()}
    saved: dict[object, int] = {}

    def stop(*arguments):
        raise _Stop

    def take_graph(graph: torch.fx.GraphModule, *unused, is_backward: bool = False, **more):
        if is_backward:
            return stop
        (output,) = graph.graph.find_nodes(op="output")
        for node in output.args[0][1:]:  # after the result
            value = node.meta["val"]
            if isinstance(value, Tensor) and not (
                node.op == "placeholder" and tuple(value.shape) in shapes
            ):
                saved[node] = value.nbytes
        return stop

    compiled = torch.compile(
        block,
        backend=lambda graph, inputs: compile_fx(graph, inputs, inner_compile=take_graph),
        dynamic=False,
    )
    with pytest.raises(_Stop):
        compiled(*inputs_of(args, batch, seq))
    angles = seq * args.head_dim * 4
    form = BlockForm("sdpa", is_compiled=True, recipe=recipe)
    expected = batch * seq * kept_bytes(args, form, "all")
    assert sum(saved.values()) - angles == pytest.approx(expected, rel=5e-3)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="FSDP would want its tensors there")
@pytest.mark.parametrize(
    ("gpus", "flavor", "mode", "tensor_parallel", "replicas", "micro_batches", "tokens"),
    [
        (1, "12_7b", "all", 1, 1, 1, 2048),
        (8, "12_7b", "input", 1, 1, 1, 8192),
        (4, "2_6b", "products", 2, 1, 1, 4096),
        (4, "12_7b", "input", 1, 2, 2, 256),
        (8, "2_6b", "all", 2, 2, 2, 512),
    ],
)
def test_a_whole_step_takes_what_is_predicted(
    triton_on_cpu,
    gpus: int,
    flavor: str,
    mode: Kept,
    tensor_parallel: int,
    replicas: int,
    micro_batches: int,
    tokens: int,
):
    config = JobConfig()
    config.model.flavor, config.model.args.n_layers = flavor, 2
    config.model.kernels = config.model.attention = "triton"
    config.training.mixed_precision_param = "bfloat16"
    config.loss.chunk_tokens = tokens  # on a CPU the sum over chunks takes another way
    config.parallelism.tensor_parallel_degree = tensor_parallel
    config.parallelism.data_parallel_replicate_degree = replicas
    checkpoint = config.activation_checkpoint
    checkpoint.mode, checkpoint.selective_ac_option = MODES[mode]
    args = dataclasses.replace(FLAVORS[flavor], n_layers=2)
    args.update_from_config(config)
    with simulated_ranks(gpus):
        degrees = dict.fromkeys(("cp", "pp", "ep", "etp"), 1)
        dims = ParallelDims(
            dp_replicate=replicas, dp_shard=-1, tp=tensor_parallel, **degrees, world_size=gpus
        )
        with torch.device("meta"):
            model = Motif2Model(args)
        model = parallelize(model, dims, config)
        named = {plain_name(name): p for name, p in model.named_parameters()}
        ranks, accumulates = gpus // tensor_parallel, micro_batches > 1
        job = job_of(config, ranks, "H100-80GB", Planned(named), accumulates)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")
            watched = step_bytes(model, tokens, micro_batches)
    moment, parts = peak(job, tokens)
    assert parts.total == pytest.approx(watched, rel=0.02), (moment, parts)


def step_bytes(model: nn.Module, tokens: int, micro_batches: int) -> int:
    """Return the most that was alive in a step of AdamW."""
    state = [torch.zeros_like(p) for p in model.parameters() for _ in range(2)]
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with Watch() as watch:
        for tensor in (*model.parameters(), *state):
            tensor.detach()  # so that it is seen
        for _ in range(micro_batches):
            model(ids, labels=ids).total.backward()
        return max(watch.peak_bytes, watch.alive_bytes())
