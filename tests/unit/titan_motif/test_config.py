"""Configurations: what loads, and the one line that each mistake is answered with."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import titan_motif.device  # noqa: F401
from titan_motif import check_config, train
from titan_motif.config_files import ConfigError, read_files
from titan_motif.config_keys import all_keys
from titan_motif.config_loading import load_config
from titan_motif.config_resolving import resolve
from titan_motif.model import Motif2Model
from titan_motif.network import model_args

ROOT = Path(__file__).resolve().parents[3]
DEBUG = "tests/plain.toml"


def prepared(folder: Path, tokens: np.ndarray, validation: np.ndarray | None = None) -> list[str]:
    """Write a folder of tokens with a tokenizer; return the arguments that name it."""
    for split, array in (("train", tokens), ("validation", validation)):
        (folder / split).mkdir()
        np.save(folder / split / "tokens.npy", tokens if array is None else array)
    (folder / "tokenizer.json").touch()
    arguments = ["--training.dataset", "prepared", "--training.dataset_path", str(folder)]
    return [*arguments, "--model.hf_assets_path", str(folder)]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "train_configs").glob("*.toml")), ids=lambda f: f.stem
)
def test_every_config_loads_and_builds_on_meta(file: Path, tmp_path: Path, monkeypatch):
    there = [] if file.stem == "debug" else prepared(tmp_path, np.zeros(4097, np.uint32))
    (_, table), *_ = read_files(file)
    for source in table.get("curriculum", {}).get("sources", ()):
        for split in ("train", "validation"):
            (tmp_path / source["path"] / split).mkdir(parents=True)
            np.save(tmp_path / source["path"] / split / "tokens.npy", np.zeros(16_385, np.uint32))
    if "12_7b" in file.stem:  # in FP8
        monkeypatch.setattr("titan_motif.config_float8.float8_problem", lambda: None)
        there += ["--training.mixed_precision_param", "bfloat16"]
    gpus = re.search(r"_(\d+)x", file.stem)
    world_size = int(gpus[1]) if gpus else 2
    # Conversations are packed as a job starts.
    runs_here = "sft" not in file.stem
    config = load_config(["--job.config_file", str(file), *there], world_size, runs_here)
    with torch.device("meta"):
        model = Motif2Model(model_args(config))
    counts = {"debug": 1_537_840, "2_6b": 2_597_218_432, "12_7b": 12_703_860_896}
    counts |= {"experiment_gda": 33_563_168, "experiment_gda_quick": 229_704}
    counts |= {"experiment_growth_quick": 127_192, "experiment_curriculum_quick": 104_576}
    named = file.stem if file.stem in counts else config.model.flavor
    assert sum(p.numel() for p in model.parameters()) == counts[named]


def test_a_file_has_what_it_is_based_on(tmp_path: Path):
    (tmp_path / "far.toml").write_text("[optimizer]\nlr = 0.5\nbeta1 = 0.8\n[debug]\nseed = 7")
    (tmp_path / "folder").mkdir()
    near = tmp_path / "folder" / "near.toml"
    near.write_text('base = "../far.toml"\n[optimizer]\nlr = 0.25\nbeta2 = 0.7')
    top = tmp_path / "top.toml"
    top.write_text('base = "folder/near.toml"\n[optimizer]\nbeta2 = 0.6')
    config = load_config(["--job.config_file", str(top), "--debug.seed", "8"], world_size=1)
    optimizer = config.optimizer
    found = optimizer.lr, optimizer.beta1, optimizer.beta2, config.debug.seed
    assert found == (0.25, 0.8, 0.6, 8)


BAD_FILES = {
    "not TOML": ("[training\nsteps = 1", "bad.toml:1: not valid TOML: Expected ']'", "'[training'"),
    "unknown key": ("[training]\nstepz = 1", "stepz is not a setting", "training.steps"),
    "unknown section": ("[trainign]\nsteps = 1", "steps is not a setting", "training.steps"),
    "wrong type": ('[training]\nsteps = "many"', "steps is 'many'", "an integer is needed"),
    "float for integer": ("[training]\nseq_len = 12.5", "seq_len is 12.5", "an integer"),
    "another unknown section": ("[metrcs]", ":1: metrcs is not a setting", "did you mean metrics?"),
    "a name with its section": (
        '[training]\n"dataloader.num_workers" = 1',
        "bad.toml:2: training.'dataloader.num_workers' is not a setting",
        "did you mean training.dataloader.num_workers?",
    ),
    "of the section that is alike": (
        "[validatoin]\nenable = true",
        "validatoin.enable is not a setting",
        "did you mean validation.enable?",
    ),
    "an empty table": ("[debug.seed]", ":1: debug.seed is {}", "an integer is needed"),
    "not finite": ("[optimizer]\nlr = nan", ":2: optimizer.lr is nan", "a finite number"),
    "too large": ("[training]\nsteps = 99999999999999999999", "is 9999", "an integer of 64 bits"),
    "out of memory": (
        "[training]\nsteps = 1000000000000",
        "is 1000000000000",
        "at most 10,000,000",
    ),
    "two lines": ('[job]\ndump_folder = "a\\nb"', r"is 'a\nb'", "without control characters"),
    "outside of sections": ("steps = 1", "bad.toml:1: steps is not a setting", "training.steps"),
    "array of tables": ("[[training]]\nsteps = 1", "bad.toml:1: training is a section", "name one"),
    "table for a value": ("[training.steps]\nx = 1", "x is not a setting", "training.steps"),
    "choice": ('[optimizer]\nimplementation = "fast"', "is 'fast'", "'foreach', 'fused'"),
    "not a bool": ("[compile]\nenable = 1", "enable is 1", "true or false"),
    "negative": ("[training]\nsteps = -3", "training.steps is -3", "at least 1"),
    "zero batch": ("[training]\nlocal_batch_size = 0", "local_batch_size is 0", "at least 1"),
    "learning rate": ("[optimizer]\nlr = 0.0", "optimizer.lr is 0.0", "more than 0"),
    "beta": ("[optimizer]\nbeta1 = 1.5", "beta1 is 1.5", "0.0 to below 1.0 is allowed"),
    "flavor": ('[model]\nflavor = "13b"', "model.flavor is '13b'", "12_7b"),
    "heads": ("[model.args]\nn_heads = 7", "n_heads is 7", "multiple of 5"),
    "kv heads": ("[model.args]\nn_kv_heads = 3", "n_kv_heads is 3", "even number"),
    "seq_len": ("[training]\nseq_len = 4096", "training.seq_len is 4096", "at most 2048"),
    "batch": ("[training]\nglobal_batch_size = 9", "global_batch_size is 9", "8 x 2 = 16"),
    "vocabulary": ("[training]\nbuiltin_vocab_size = 4096", "size is 4096", "1024 entries"),
    "optimizer": ('[optimizer]\nname = "Lion"', "name is 'Lion'", "'ParallelMuon', 'AdamW'"),
    "shards": ("[parallelism]\ndata_parallel_shard_degree = 3", "degree is 3", "-1 or 2"),
    "keep one": ("[checkpoint]\nkeep_latest_k = 1", "keep_latest_k is 1", "at least 2"),
    "seed": ("[debug]\nseed = -1", "debug.seed is -1", "at least 0"),
    "kept option": (
        '[activation_checkpoint]\nselective_ac_option = "two"',
        "selective_ac_option is 'two'",
        "'products', 'op' or a positive integer",
    ),
    "every none-th block": (
        '[activation_checkpoint]\nselective_ac_option = "0"',
        "selective_ac_option is '0'",
        "'products', 'op' or a positive integer",
    ),
    "budget uncompiled": (
        '[activation_checkpoint]\nmode = "memory_budget"',
        "mode is 'memory_budget'",
        "compile.enable",
    ),
    "safetensors with an optimizer": (
        "[checkpoint]\nlast_save_in_hf = true",
        "last_save_in_hf is true",
        "checkpoint.last_save_model_only to be true",
    ),
    "an optimizer from safetensors": (
        "[checkpoint]\ninitial_load_in_hf = true\ninitial_load_model_only = false",
        "initial_load_in_hf is true",
        "checkpoint.initial_load_model_only to be true",
    ),
    "a seed that is not saved": (
        "[checkpoint]\ncreate_seed_checkpoint = true",
        "create_seed_checkpoint is true",
        "checkpoint.enable",
    ),
    "reading ahead alone": (
        "[training.dataloader]\nprefetch_factor = 2",
        "prefetch_factor is 2 with 0 workers",
        "at least 1 of each",
    ),
    "warm-up twice": (
        "[lr_scheduler]\nwarmup_steps = 30\nwarmup_tokens = 5000",
        "lr_scheduler.warmup_tokens is 5000 and warmup_steps is 30; one of them is allowed",
        "leave out warmup_steps, or set warmup_tokens to -1",
    ),
    "decay twice": (
        "[lr_scheduler]\ndecay_ratio = 0.5\ndecay_tokens = 0",
        "lr_scheduler.decay_tokens is 0 and decay_ratio is 0.5; one of them is allowed",
        "leave out decay_ratio, or set decay_tokens to -1",
    ),
    "negative tokens": (
        "[lr_scheduler]\ndecay_tokens = -2",
        "decay_tokens is -2",
        "-1 (decay_ratio) or",
    ),
    "inverse square root of nothing": (
        '[lr_scheduler]\ndecay_type = "inverse_sqrt"',
        "lr_scheduler.min_lr_factor is 0.0",
        "more than 0 is needed where decay_type is 'inverse_sqrt'",
    ),
    "unknown decay": (
        '[lr_scheduler]\ndecay_type = "inverse"',
        "decay_type is 'inverse'",
        "'linear', 'cosine', 'sqrt', 'inverse_sqrt'",
    ),
    "missing data": (
        '[training]\ndataset = "prepared"\ndataset_path = "/nowhere"',
        "training.dataset_path is '/nowhere'",
        "/nowhere/train/tokens.npy",
    ),
    "patience": (
        "[watchdog]\nstall_seconds = 700",
        "watchdog.stall_seconds is 700",
        "less than comm.train_timeout_seconds (600)",
    ),
    "a start that is not loaded": (
        '[checkpoint]\ninitial_load_path = "/nowhere"',
        "initial_load_path is '/nowhere'",
        "it needs checkpoint.enable to be true",
    ),
    "missing start": (
        '[checkpoint]\nenable = true\ninitial_load_path = "/nowhere"',
        "initial_load_path is '/nowhere'",
        "no such folder",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_answered_with_one_line(case: str, tmp_path: Path, capsys):
    text, found, allowed = BAD_FILES[case]
    file = tmp_path / "bad.toml"
    file.write_text(text)
    code = check_config.main(["--world-size", "2", "--job.config_file", str(file)])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert re.match(rf"error: {re.escape(str(file))}:\d+: ", line)
    assert found in line
    assert allowed in line


def test_a_rank_finds_the_mistake_before_it_looks_for_the_others(capsys, monkeypatch):
    """Under torchrun without run_train.sh nothing has checked the job before."""
    monkeypatch.setattr(train, "start_logging", lambda: None)
    monkeypatch.setattr(train.StopRequest, "install", lambda self: None)  # the tests' Ctrl-C
    monkeypatch.delattr(torch.distributed, "init_process_group")
    names = ("WORLD_SIZE", "LOCAL_RANK", "RANK", "MASTER_PORT", "MASTER_ADDR")
    for name, value in zip(names, ("3", "0", "0", "0", "localhost"), strict=True):
        monkeypatch.setenv(name, value)
    assert train.main(["--job.config_file", DEBUG]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 data-parallel ranks cannot share it" in line


# tokens of train, of validation, what is found, what is allowed
BAD_TOKENS = {
    "too few": (
        np.zeros(128, np.uint16),
        None,
        "train/tokens.npy: 128 tokens",
        "at least 129 are needed",
    ),
    "too few held out": (
        np.zeros(129, np.uint16),
        np.zeros(9, np.uint16),
        "validation/tokens.npy: 9 tokens",
        "at least 129 are needed",
    ),
    "none": (np.zeros(0, np.uint16), None, "train/tokens.npy: 0 tokens", "at least 129 are needed"),
    "a matrix": (np.zeros((9, 129), np.uint16), None, "2-D of uint16", "1-D array of integers"),
    "fractions": (np.zeros(999, np.float32), None, "1-D of float32", "1-D array of integers"),
    "objects": (np.array([{}] * 999), None, "cannot be read as an array", "tokens.npy"),
    "beyond the vocabulary": (np.arange(1025), None, "train/tokens.npy holds", "0 to 1023"),
    "below it": (np.arange(999) - 1, None, "the ids -1 to 997", "0 to 1023"),
    "beyond it, held out": (np.arange(999), np.arange(2000), "validation/tokens.npy", "0 to 1023"),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_tokens_that_cannot_be_trained_on_are_answered_with_one_line(case, tmp_path, capsys):
    train, validation, found, allowed = BAD_TOKENS[case]
    arguments = prepared(tmp_path, train, validation)
    assert check_config.main(["--job.config_file", DEBUG, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: command line: training.dataset_path is '{tmp_path}'; ")
    assert found in line
    assert allowed in line


def test_a_split_that_is_not_read_is_not_checked(tmp_path: Path):
    arguments = prepared(tmp_path, np.zeros(129, np.uint16), np.zeros(1, np.uint16))
    load_config(["--job.config_file", DEBUG, *arguments, "--validation.no_enable"])


@pytest.mark.skipif(
    torch.accelerator.current_accelerator(check_available=True) is not None, reason="of CPU alone"
)
@pytest.mark.parametrize(
    "key",
    [
        "training.enable_cpu_offload",
        "profiling.enable_profiling",
        "profiling.enable_memory_snapshot",
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(key: str, capsys):
    assert check_config.main(["--job.config_file", DEBUG, f"--{key}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: command line: {key} is True; that needs a GPU, and this machine shows none"
    )


BAD_ARGUMENTS = {
    "missing file": (
        ["--job.config_file", "train_configs/debgu.toml"],
        "did you mean",
        "debug.toml",
    ),
    "not a number": (["--training.steps", "ten"], "--training.steps is 'ten'", "an integer"),
    "unknown": (["--training.step", "3"], "--training.step is not a setting", "training.steps"),
    "stray word": (["debug.toml"], "'debug.toml' stands alone", "--section.field"),
    "no value": (["--training.steps"], "--training.steps is given no value", "an integer"),
    "no path": (
        ["--job.config_file", " "],
        "config_file is ' '",
        "the path of a TOML file is needed",
    ),
    "two values": (["--training.steps=5\nx = 3"], r"is '5\nx = 3'", "an integer is needed"),
    "no folder": (
        ["--job.dump_folder", "--compile.enable"],
        "--job.dump_folder is given no value",
        "a text is needed",
    ),
    "no to a number": (["--training.no_steps"], "--training.steps is given no value", "an integer"),
    "no file": (["--job.config_file"], "--job.config_file is given no value", "a path is needed"),
    "a section": (["--training", "7"], "--training is a section", "name one of its settings"),
    "heads": (
        ["--job.config_file", DEBUG, "--model.args.n_heads", "7"],
        "command line: model.args.n_heads does not fit flavor debug: n_heads is 7",
        "a multiple of 5",
    ),
    "positions without documents": (
        ["--job.config_file", DEBUG, "--training.restart_positions"],
        "command line: training.restart_positions is true",
        "training.mask_documents to be true",
    ),
    "a clip that is off": (
        ["--job.config_file", DEBUG, "--optimizer.no_qk_clip", "--optimizer.qk_clip_interval", "2"],
        "command line: optimizer.qk_clip_interval is 2",
        "it needs optimizer.qk_clip to be true",
    ),
    "a threshold of zero": (
        ["--job.config_file", DEBUG, "--optimizer.qk_clip_threshold", "0"],
        "command line: optimizer.qk_clip_threshold is 0",
        "more than 0 is needed",
    ),
    "an unknown balance": (
        ["--job.config_file", DEBUG, "--optimizer.qk_clip_balance", "even"],
        "--optimizer.qk_clip_balance is 'even'",
        "'grouped'",
    ),
    "kernels for plain attention": (
        [
            "--job.config_file",
            DEBUG,
            "--model.attention",
            "triton",
            "--model.args.grouped_ratio=0",
            "--model.args.n_heads=8",
        ],
        "command line: model.attention is 'triton'; plain attention (grouped_ratio 0) runs SDPA",
        "'auto' or 'sdpa' is allowed",
    ),
    "kernels in float32": (
        [
            *("--job.config_file", DEBUG, "--model.attention", "triton"),
            *("--training.mixed_precision_param", "float32"),
        ],
        "command line: model.attention is 'triton'; ",  # on a CPU for that reason
        "'auto' or 'sdpa' is allowed",
    ),
    "a bound on no noise": (
        [
            *("--job.config_file", DEBUG, "--metrics.noise_ratio_bound", "0.5"),
            *("--model.args.grouped_ratio=0", "--model.args.n_heads=8"),
        ],
        "command line: metrics.noise_ratio_bound is 0.5",
        "with grouped_ratio 0 there is no noise map",
    ),
    "a head that the kernels do not take": (
        [
            *("--job.config_file", DEBUG, "--model.attention", "triton"),
            *("--model.args.head_dim", "24", "--training.mixed_precision_param", "bfloat16"),
        ],
        "command line: model.attention is 'triton'; ",
        "'auto' or 'sdpa' is allowed",
    ),
    "heads for the flavor's keys": (
        ["--job.config_file", DEBUG, "--model.args.n_heads", "15"],
        "command line: model.args.n_heads does not fit flavor debug: n_kv_heads is 4",
        "3 groups",
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_command_line_is_answered_with_one_line(case: str, capsys):
    arguments, found, allowed = BAD_ARGUMENTS[case]
    assert check_config.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert found in line
    assert allowed in line


def test_the_command_line_overrides_the_file():
    config = load_config(
        [
            "--job.config_file", DEBUG,
            "--training.steps", "7",
            "--optimizer.lr=1e-2",
            "--compile.enable",
            "--checkpoint.no-enable",
            "--model.args.n_layers", "3",
            "--compile.components", "model,loss",
            "--optimizer.muon.nesterov=false",
            "--optimizer.muon.scale", "spectral",
            "--optimizer.muon.adamw_patterns", "*.k_proj.*,*.v_proj.*",
            "--lr_scheduler.decay_ratio", "none",
        ]
    )  # fmt: skip
    assert config.training.steps == 7
    assert config.optimizer.lr == 1e-2
    assert config.compile.enable
    assert not config.checkpoint.enable
    assert model_args(config).n_layers == 3
    assert config.compile.components == ["model", "loss"]
    assert not config.optimizer.muon.nesterov
    assert config.optimizer.muon.scale == "spectral"
    assert config.optimizer.muon.adamw_patterns == ["*.k_proj.*", "*.v_proj.*"]
    assert config.lr_scheduler.decay_ratio is None
    assert config.training.seq_len == 128  # the file's


def test_what_is_given_again_holds_and_is_told(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    job = ["--job.config_file", "tests/plain.toml"]
    words = [*job, *job, "--training.steps", "3", "--training.steps=4", "--compile.no_enable"]
    assert load_config(words, 2).training.steps == 4
    assert check_config.main(["--world-size", "2", *words, "--compile.enable=false"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "command line: --training.steps is given more than once; the last holds",
        "command line: --compile.enable is given more than once; the last holds",
    ]


def test_an_integer_serves_where_a_number_is_needed():
    config = load_config(["--job.config_file", DEBUG, "--optimizer.lr", "1"])
    assert config.optimizer.lr == 1.0
    assert type(config.optimizer.lr) is float


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        ([], 8 * 128),
        (["--training.global_batch_size", "24"], 24 * 128),
        (["--training.global_batch_size=-1", "--training.local_batch_size", "3"], 12 * 128),
        (["--parallelism.tensor_parallel_degree", "2"], 8 * 128),
    ],
)
def test_the_schedule_knows_the_tokens_of_a_step(arguments: list[str], tokens: int):
    config = load_config(["--job.config_file", DEBUG, *arguments], world_size=4)
    assert config.lr_scheduler.plan.step(0).tokens == tokens
    assert "lr_scheduler.plan" not in all_keys()


def test_the_tokenizer_is_the_datas_own_unless_another_is_named(tmp_path: Path):
    config = load_config(["--training.dataset_path", "data/other"])
    assert config.model.hf_assets_path == "data/other/tokenizer"
    load_config(["--model.hf_assets_path", f"{ROOT}/data/../data/builtin/tokenizer/"])
    named = prepared(tmp_path, np.zeros(2049, np.uint16))
    assert load_config(named).model.hf_assets_path == str(tmp_path)
    with pytest.raises(ConfigError, match="tokenizer'; it holds no tokenizer"):
        load_config([*named, "--model.hf_assets_path", "auto"])


def test_the_builtin_corpus_is_read_with_its_own_tokenizer_alone(capsys):
    arguments = ["--training.dataset_path", "corp512", "--training.builtin_vocab_size", "512"]
    arguments += ["--model.hf_assets_path", "data/builtin/tokenizer"]
    assert check_config.main(["--job.config_file", DEBUG, *arguments]) == 2
    assert capsys.readouterr().err == (
        "error: command line: model.hf_assets_path is 'data/builtin/tokenizer'; the built-in "
        "corpus is written in the tokens of 'corp512/tokenizer': 'auto' is that folder\n"
    )


def test_auto_precision_is_float32_without_an_accelerator():
    config = load_config(["--job.config_file", DEBUG])
    on_gpu = torch.accelerator.current_accelerator(check_available=True) is not None
    assert config.training.mixed_precision_param == ("bfloat16" if on_gpu else "float32")


def test_torchtitans_own_config_manager_accepts_ours():
    """`job.custom_config_module = "titan_motif.config"` under torchtitan's own entry."""
    from torchtitan.config import ConfigManager

    arguments = ["--job.custom_config_module=titan_motif.config", f"--job.config_file={DEBUG}"]
    config = ConfigManager().parse_args(arguments)
    assert config.model.flavor == "debug"
    assert config.summary.sample_tokens == 48
    assert config.training.builtin_vocab_size == 1024
    arguments[1] = "--job.config_file=train_configs/debug.toml"
    config = ConfigManager().parse_args(arguments)
    resolve(config, 2)
    assert config.training.steps == 385
    groups = ["english", "code", "mathematics"]
    assert [source.name for source in config.curriculum.sources] == groups
