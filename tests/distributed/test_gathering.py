"""A sharded model gathered whole, against the same model saved and loaded."""

from pathlib import Path

import pytest
import torch
from layouts import FLOAT8, SMALL, build

import titan_motif.device  # noqa: F401

# isort: split
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from titan_motif.components.sealing_writer import SealingWriter
from titan_motif.evaluation.during_training import gathered_model
from titan_motif.evaluation.loading import load_model

NOT_OF_A_JOB = ("init_std", "loss_chunk_tokens", "z_loss")


def save_and_gather(layout: str, folder: str, arguments: dict, options: dict):
    """Save a model; return what it is when gathered, by dtype."""
    model, _ = build(layout, kernels="torch", **arguments, **options)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.to_local().mul_(1 + 0.01 * number)  # none is what its initialisation left
        dcp.save(get_model_state_dict(model), storage_writer=SealingWriter(folder))
        # A pass without a backward one leaves some parameters gathered.
        model(torch.arange(32).reshape(2, 16))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        whole = gathered_model(model, model.model_args, torch.device("cpu"), dtype)
        assert not whole.training
        found[dtype] = whole.state_dict()
    assert all(module.training for module in model.modules())
    return found


def gather_what_is_not_finite() -> str:
    model, _ = build("fsdp2", kernels="torch")
    if torch.distributed.get_rank() == 1:
        model.norm.weight.to_local().data[-1] = torch.nan
    with pytest.raises(ValueError, match="not finite") as caught:
        gathered_model(model, model.model_args, torch.device("cpu"), torch.float32)
    return str(caught.value)


@pytest.mark.parametrize(
    ("layout", "arguments", "options"),
    [
        ("fsdp2", {}, {"recompute": "full", "backend": "eager"}),
        ("tp2", {}, {}),
        ("fsdp2", FLOAT8, {"float8": "tensorwise", "gathers_in_float8": True}),
    ],
    ids=["FSDP, compiled, recomputed", "TP", "FSDP in FP8"],
)
def test_a_gathered_model_is_the_saved_one(rank_pool, layout, arguments, options, tmp_path: Path):
    step = tmp_path / "run" / "checkpoint" / "step-5"
    step.parent.mkdir(parents=True)
    network = {n: v for n, v in (SMALL | arguments).items() if n not in NOT_OF_A_JOB}
    lines = ["[training]", "seq_len = 16", "builtin_vocab_size = 304", "[validation]"]
    lines += ["seq_len = 16", "[model.args]", *(f"{name} = {n}" for name, n in network.items())]
    (tmp_path / "run" / "config.resolved.toml").write_text("\n".join(lines))
    for found in rank_pool.run(save_and_gather, 2, layout, str(step), arguments, options):
        for dtype, tensors in found.items():
            expected = load_model(step, dtype=dtype).state_dict()
            assert tensors.keys() == expected.keys()
            for name, value in expected.items():
                assert tensors[name].dtype == value.dtype, name
                assert torch.equal(tensors[name], value), name


def test_all_ranks_refuse_what_one_of_them_holds(rank_pool):
    told = "norm.weight has values that are not finite"
    assert rank_pool.run(gather_what_is_not_finite, 2) == [told, told]
