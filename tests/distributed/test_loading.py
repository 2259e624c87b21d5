"""A step that several ranks have saved, loaded by one."""

from pathlib import Path

import torch
from small_models import overrides, random_model

import titan_motif.device  # noqa: F401

# isort: split
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from titan_motif.components.sealing_writer import SealingWriter
from titan_motif.evaluation.loading import load_model
from titan_motif.model import Motif2ModelArgs

ARGS = Motif2ModelArgs(dim=20, n_layers=2, n_heads=10, n_kv_heads=4, head_dim=8, hidden_dim=25)


def save_sharded(folder: str) -> None:
    model = random_model(ARGS).float()
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in (*model.layers.values(), model.scalars, model):
        fully_shard(module, mesh=mesh)
    dcp.save(get_model_state_dict(model), storage_writer=SealingWriter(folder))


@torch.no_grad()
def test_a_step_of_two_ranks_is_loaded_by_one(rank_pool, tmp_path: Path):
    step = tmp_path / "run" / "checkpoint" / "step-5"
    step.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.resolved.toml").write_text(overrides(ARGS))
    rank_pool.run(save_sharded, 2, str(step))
    assert len(list(step.glob("*.distcp"))) == 2
    model, loaded = random_model(ARGS).float(), load_model(step)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    tokens = torch.randint(1024, (2, 9))
    assert torch.equal(loaded(tokens), model(tokens))
