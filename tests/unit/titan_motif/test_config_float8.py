"""FP8 settings that cannot work are answered with one line, before any process starts."""

import pytest

from titan_motif import check_config
from titan_motif.config_loading import load_config

PLAIN = ["--job.config_file", "tests/plain.toml"]
F8 = "--quantize.linear.float8"
ON = ["--model.converters", "quantize.linear.float8"]
EMULATED = [*ON, f"{F8}.emulate"]

BAD = {
    "no GPU": (ON, "this machine shows no GPU", "float8.emulate = true"),
    "without the converter": (
        [f"{F8}.recipe_name", "rowwise"],
        "recipe_name is 'rowwise'",
        "needs model.converters = 'quantize.linear.float8'",
    ),
    "left out without it": ([f"{F8}.filter_fqns", "k_proj"], "['k_proj']", "model.converters"),
    "another recipe": ([*EMULATED, f"{F8}.recipe_name", "fast"], "is 'fast'", "'tensorwise'"),
    "gathered by rows": (
        [*EMULATED, f"{F8}.enable_fsdp_float8_all_gather"],
        "recipe_name is 'rowwise_with_gw_hp'",
        "only 'tensorwise'",
    ),
    "scales of what is not gathered": (
        [
            *EMULATED,
            f"{F8}.recipe_name",
            "tensorwise",
            f"{F8}.precompute_float8_dynamic_scale_for_fsdp",
        ],
        "precompute_float8_dynamic_scale_for_fsdp is true",
        "needs enable_fsdp_float8_all_gather",
    ),
    "tokens": (
        [*EMULATED, f"{F8}.recipe_name", "rowwise", "--training.seq_len", "120"],
        "training.seq_len is 120",
        "multiples of 16",
    ),
    "a name of no layer": (
        [*EMULATED, f"{F8}.filter_fqns", "k_proj,wq"],
        "filter_fqns has 'wq'",
        "which no linear layer's name has",
    ),
    "sizes": (
        [*EMULATED, "--model.args.hidden_dim", "344"],
        "gives layers.0.feed_forward.gate_proj 344 x 160",
        "multiples of 16",
    ),
    "the residual stream over two ranks": (
        [*EMULATED, "--model.args.dim", "168", "--parallelism.tensor_parallel_degree", "2"],
        "gives layers.0.attention.q_proj 160 x 168",
        "multiples of 16",
    ),
    "a rank's part": (
        [*EMULATED, "--model.args.hidden_dim", "336", "--parallelism.tensor_parallel_degree", "2"],
        "tensor_parallel_degree is 2; layers.0.feed_forward.gate_proj would be 168 x 160",
        "multiples of 16",
    ),
    "the head is left out anyway": (
        [*EMULATED, f"{F8}.filter_fqns", "output"],
        "filter_fqns has 'output'",
        "which no linear layer's name has",
    ),
    "every second product": (
        [
            *EMULATED,
            "--activation_checkpoint.mode",
            "selective",
            "--activation_checkpoint.selective_ac_option",
            "op",
        ],
        "selective_ac_option is 'op'",
        "'products' or a positive integer",
    ),
    "another converter": (["--model.converters", "quantize.linear.mx"], "'quantize.linear.mx'", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_answered_with_one_line(case, capsys):
    arguments, found, allowed = BAD[case]
    assert check_config.main([*PLAIN, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert found in line
    assert allowed in line


def test_layers_that_are_left_out_may_have_any_size():
    skipped = [f"{F8}.filter_fqns", "feed_forward", "--parallelism.tensor_parallel_degree", "2"]
    arguments = [*PLAIN, *EMULATED, *skipped, "--model.args.hidden_dim", "336"]
    assert load_config(arguments, 2).model.args.hidden_dim == 336


def test_a_plan_needs_no_gpu_for_float8():
    float32 = ["--training.mixed_precision_param", "bfloat16"]
    config = load_config([*PLAIN, *ON, *float32], 8, runs_here=False)
    assert config.quantize.linear.float8.recipe_name == "rowwise_with_gw_hp"
