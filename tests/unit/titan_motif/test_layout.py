"""Layouts: which ones are refused, with what words, before any process group forms."""

import re
from pathlib import Path

import pytest
import torch

import titan_motif.device  # noqa: F401
from titan_motif import check_config
from titan_motif.config_loading import load_config
from titan_motif.layout import REFUSED_SWITCHES, allowed_tensor_degrees
from titan_motif.model import FLAVORS

ROOT = Path(__file__).resolve().parents[3]
REPLICATE = "--parallelism.data_parallel_replicate_degree"
SHARD = "--parallelism.data_parallel_shard_degree"
LOCAL, GLOBAL = "--training.local_batch_size", "--training.global_batch_size"
TENSOR = "--parallelism.tensor_parallel_degree"
WIDE = ["--model.args.n_heads", "20", "--model.args.n_kv_heads", "8"]  # four groups, four pairs

# processes, arguments, what was found, what is allowed
EMULATED_FP8 = [
    "--model.converters",
    "quantize.linear.float8",
    "--quantize.linear.float8.emulate",
]
BAD_LAYOUTS = {
    "replicas alone": (2, [REPLICATE, "2"], "degree is 2 with nothing sharded", "shard_degree"),
    "pipeline": (2, ["--parallelism.pipeline_parallel_degree", "2"], "only 1", "tensor_parallel"),
    "context": (2, ["--parallelism.context_parallel_degree", "2"], "no ring", "tensor_parallel"),
    "experts": (2, ["--parallelism.expert_parallel_degree", "2"], "no experts", "shard_degree"),
    "no replica": (2, [REPLICATE, "0"], "replicate_degree is 0", "at least 1"),
    "no tensor rank": (2, [TENSOR, "0"], "tensor_parallel_degree is 0", "at least 1"),
    "no shard": (2, [SHARD, "0"], "shard_degree is 0", "-1 (all that is left) or at least 1"),
    "product too small": (8, [SHARD, "2", TENSOR, "2"], "shard_degree is 2", "-1 or 4"),
    "product too large": (2, [SHARD, "4"], "shard_degree is 4", "-1 or 2"),
    "odd number of processes": (3, [TENSOR, "2"], "1 replicas x 2", "divide the 3 processes"),
    "odd replicas": (3, [REPLICATE, "2"], "2 replicas x 1", "divide the 3 processes"),
    "groups of heads": (4, [TENSOR, "4"], "2 groups of heads cannot", "one of 1, 2 can"),
    "pairs of key heads": (
        4,
        [TENSOR, "4", "--model.args.n_heads", "20"],
        "2 pairs of key heads cannot",
        "one of 1, 2 can",
    ),
    "hidden columns": (
        4,
        [TENSOR, "4", *WIDE, "--model.args.hidden_dim", "450"],
        "450 columns of the feed-forward layer cannot",
        "one of 1, 2 can",
    ),
    "vocabulary": (
        4,
        [TENSOR, "4", *WIDE, "--model.args.vocab_size", "1026"],
        "1026 entries of the vocabulary cannot",
        "one of 1, 2 can",
    ),
    "heads of plain attention": (
        4,
        [TENSOR, "4", "--model.args.grouped_ratio", "0", "--model.args.n_kv_heads", "5"],
        "10 query heads cannot",
        "one of 1 can",
    ),
    "sequence": (2, [TENSOR, "2", "--training.seq_len", "127"], "seq_len is 127", "a multiple of"),
    "validation": (2, [TENSOR, "2", "--validation.seq_len", "9"], "seq_len is 9", "a multiple of"),
    "batch": (
        8,
        [REPLICATE, "2", TENSOR, "2", LOCAL, "4"],
        "global_batch_size is 8",
        "4 x 4 = 16",
    ),
    "ranks that cannot share": (3, [], "global_batch_size is 8; 3 data-parallel", "3 can share 9"),
    "more ranks than sequences": (16, [], "is 8; 16 data-parallel", "8 can, or 16 can share 16"),
    "tensor ranks that cannot share": (12, [TENSOR, "2"], "6 data-parallel", "4 can"),
    "no batch size": (2, [GLOBAL, "-1"], "local_batch_size is -1", "give one of them"),
    "whole logits": (
        2,
        [TENSOR, "2", "--parallelism.disable_loss_parallel"],
        "disable_loss_parallel is true",
        "leave it false",
    ),
    "asynchronous": (
        2,
        [TENSOR, "2", "--parallelism.enable_async_tensor_parallel"],
        "enable_async_tensor_parallel is true",
        "leave it false",
    ),
    "FP8": (
        2,
        [TENSOR, "2", "--model.args.hidden_dim", "464", *EMULATED_FP8],
        "layers.0.feed_forward.gate_proj would be 232 x 160 on a rank",
        "multiples of 16",
    ),
}


def test_each_switch_is_refused_in_the_documentation_for_its_own_reason():
    page = (ROOT / "docs/parallelism.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", page, re.M))
    assert told == {name: reason.split("; ")[0] for name, reason in REFUSED_SWITCHES.items()}


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_an_impossible_layout_is_answered_with_one_line(case: str, capsys, monkeypatch):
    world_size, arguments, found, allowed = BAD_LAYOUTS[case]
    monkeypatch.chdir(ROOT)
    command = ["--world-size", str(world_size), "--job.config_file", "tests/plain.toml"]
    assert check_config.main([*command, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert found in line
    assert allowed in line


@pytest.mark.parametrize(
    ("world_size", "arguments"),
    [
        (1, []),
        (4, [SHARD, "4"]),
        (4, [REPLICATE, "2"]),
        (4, [LOCAL, "4", GLOBAL, "16"]),
        (4, [TENSOR, "2"]),
        (4, [TENSOR, "4", *WIDE]),
        (8, [REPLICATE, "2", SHARD, "2", TENSOR, "2"]),
    ],
)
def test_possible_layouts_pass(world_size: int, arguments: list[str], monkeypatch):
    monkeypatch.chdir(ROOT)
    load_config(["--job.config_file", "tests/plain.toml", *arguments], world_size)


@pytest.mark.parametrize(
    ("world_size", "arguments", "local"),
    [
        *((1, [], 8), (2, [], 4), (4, [], 2), (8, [], 1), (8, [TENSOR, "2"], 2)),
        *((2, [LOCAL, "1"], 1), (6, [GLOBAL, "12"], 2), (None, [], -1)),
    ],
)
def test_ranks_share_the_global_batch(world_size, arguments, local, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(["--job.config_file", "tests/plain.toml", *arguments], world_size)
    assert config.training.local_batch_size == local


def test_the_plugin_shares_the_batch_under_torchtitans_own_entry(small_corpus, monkeypatch):
    from titan_motif.config import JobConfig
    from titan_motif.plugin import build_tokenizer

    config = JobConfig()
    config.training.dataset_path = str(small_corpus)
    config.training.local_batch_size, config.training.global_batch_size = -1, 12
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    build_tokenizer(config)
    assert config.training.local_batch_size == 3


def test_large_models_can_be_cut_over_a_machine():
    assert allowed_tensor_degrees(FLAVORS["12_7b"]) == [1, 2, 4, 8]
    assert allowed_tensor_degrees(FLAVORS["2_6b"]) == [1, 2, 4, 8]


def test_the_plugin_refuses_what_the_check_would(monkeypatch):
    """Under torchtitan's own entry nothing has checked the job before."""
    from types import SimpleNamespace

    from titan_motif.config import JobConfig
    from titan_motif.model import Motif2Model
    from titan_motif.parallelize import parallelize

    config = JobConfig()
    config.parallelism.data_parallel_replicate_degree = 2
    with torch.device("meta"):
        model = Motif2Model(FLAVORS["debug"])
    with pytest.raises(ValueError, match="replicas alone are not supported"):
        parallelize(model, SimpleNamespace(world_size=2), config)
