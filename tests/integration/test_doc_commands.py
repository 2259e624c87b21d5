"""Every block of code in the README and in docs/*.md: commands run or are parsed, settings load.

A block names its language: `sh` commands, `toml` settings, `python`, `json`, `text` for output and
formulas. A command has exactly one rule of RULES. `titan-motif` commands that a CPU can run in
little time are run as they are shown, page by page, in a folder that has what a reader would have.
"""

import ast
import glob
import gzip
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tyro
from small_models import overrides, random_model

import titan_motif.device  # noqa: F401

# isort: split
from torch.distributed.run import get_args_parser

from titan_motif import cli
from titan_motif.components.dcp_files import write_dcp
from titan_motif.components.safetensors_files import TensorShape
from titan_motif.config_files import read_files
from titan_motif.config_loading import load_config
from titan_motif.model import Motif2ModelArgs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN_WITH = {
    "data train-tokenizer": ["--vocab-size", "300"],
    "data prepare": [],
    "data inspect": [],
    "data preview": [],
    "data trace": ["--step", "1"],
    "data prune": [],
    "grow": [],
    "export": [],
    "import": [],
    "average": [],
    "generate": ["--max-new-tokens", "2"],
    "report": [],
}
"""Commands that are run, and what makes them small."""
PARSED_ALONE = {
    "drill": "hours; test_drill.py runs its quick form, test_drill_command.py the rest",
    "plan": "20 s for each of 12.7B; below where slow tests run, small in test_plan.py",
    "bench": "their figures are a GPU's; test_cli.py and test_bench_*.py run them small",
    "study": "a process for each cell; test_study_run.py runs it small",
    "experiment": "a training run for each cell; test_experiment_run.py runs it small",
    "evaluate": "it needs the extra `eval`; test_evaluate.py runs it where that is installed",
}
"""Commands of which only the command line is read, and why."""
SMALL = Motif2ModelArgs(
    dim=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=4,
    hidden_dim=24,
    grouped_ratio=1,
    vocab_size=512,
    max_seq_len=2048,
)
LARGE = Motif2ModelArgs(
    dim=32,
    n_layers=3,
    n_heads=10,
    n_kv_heads=4,
    head_dim=4,
    hidden_dim=48,
    grouped_ratio=4,
    vocab_size=512,
    max_seq_len=2048,
)


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a block, its words as a shell would pass them."""

    block: Block
    line: str
    variables: dict[str, str]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.block}: {self.line}"

    @property
    def subcommand(self) -> list[str] | None:
        """What follows `titan-motif`, or None."""
        if Path(self.words[0]).name == "titan-motif":
            return list(self.words[1:])
        if self.words[0] == "torchrun" and "titan_motif.cli" in self.words:
            return list(self.words[self.words.index("titan_motif.cli") + 1 :])
        return None


def blocks_of(page: Path, text: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[2], found[3])
        for found in re.finditer(r"^( *)```([^\n]*)\n(.*?)^\1```$", text, re.M | re.S)
    ]


def commands_of(block: Block) -> list[Command]:
    """The commands of a block; `name="words"` before them stands for `$name` in them."""
    found, names = [], {}
    for line in block.text.replace("\\\n", " ").splitlines():
        line = " ".join(re.sub(r"\s+# .*$|^#.*$", "", line).split())
        given = re.fullmatch(r'(\w+)="(.*)"', line)
        if given:
            names[given[1]] = given[2]
        elif line:
            line = re.sub(r"\$(\w+)", lambda name: names.get(name[1], name[0]), line)
            words = shlex.split(line)
            num = next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
            variables = dict(word.split("=", 1) for word in words[:num])
            found.append(Command(block, line, variables, tuple(words[num:])))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page, page.read_text())]
COMMANDS = [command for block in BLOCKS if block.language == "sh" for command in commands_of(block)]


# ---- the rules: each raises if its command cannot be given so


def check_start(command: Command, tmp_path: Path, monkeypatch) -> None:
    """A job that can run, on as many processes as the line says or a machine may have."""
    file = command.variables.get("CONFIG_FILE", "train_configs/debug.toml")
    arguments = ["--job.config_file", file, *command.words[1:]]
    if "debug" not in file and "builtin" not in arguments:  # data that a reader brings along
        (_, table), *_ = read_files(ROOT / file)
        sources = table.get("curriculum", {}).get("sources")
        for folder in [source["path"] for source in sources or ({"path": "."},)]:
            for split in ("train", "validation"):
                (tmp_path / folder / split).mkdir(parents=True)
                np.save(tmp_path / folder / split / "tokens.npy", np.zeros(16_385, np.uint32))
        (tmp_path / "tokenizer.json").touch()
        arguments += ["--training.dataset_path", str(tmp_path)]
        arguments += ["--model.hf_assets_path", str(tmp_path)]
    if "12_7b" in file:  # in FP8, on GPUs
        monkeypatch.setattr("titan_motif.config_float8.float8_problem", lambda: None)
        arguments += ["--training.mixed_precision_param", "bfloat16"]
    given = command.variables.get("NGPU")
    for processes in (int(given),) if given else (1, 2, 4, 8):
        world_size = processes * int(command.variables.get("NNODES", 1))
        # Conversations that a reader brings along are packed as a job starts.
        load_config(arguments, world_size, runs_here="/sft_" not in file)


def check_fine_tuning(command: Command, *_) -> None:
    """Settings that every stage's file takes."""
    for stage in (1, 2, 3):
        file = f"train_configs/debug_sft_stage{stage}.toml"
        load_config(["--job.config_file", file, *command.words[1:]], 2, runs_here=False)


def check_test_run(command: Command, *_) -> None:
    """Options that conftest.py and pytest have, and names of tests and markers that are there."""
    tests = " ".join(str(path) for path in (ROOT / "tests").rglob("test_*.py"))
    named_in = {"-k": tests, "-m": (ROOT / "pyproject.toml").read_text()}
    rest = list(command.words[1:])
    while rest:
        option = rest.pop(0)
        if option in named_in:
            assert rest[0] in named_in[option], f"{command}: nothing is called {rest[0]}"
            del rest[0]
        else:
            assert option in ("-x", "--update-golden") or (ROOT / option).exists(), command


def check_titan_motif(command: Command, *_) -> None:
    """A command line that the command's own parser takes; what runs it is known."""
    words = command.subcommand
    if command.words[0] == "torchrun":
        get_args_parser().parse_args(list(command.words[1:]))
    name = name_of(words)
    options = tyro.cli(
        importlib.import_module(cli.COMMANDS[name][0]).Options, args=words[len(name.split()) :]
    )
    config = getattr(options, "config", None)
    if config is not None and config.parts[0] == "train_configs":
        load_config(["--job.config_file", str(config)], runs_here=False)
    runs, is_parsed = name in RUN_WITH, name.split()[0] in PARSED_ALONE
    assert runs != is_parsed, f"{command}: say in RUN_WITH how it is small, or in PARSED_ALONE why"


def name_of(words: list[str]) -> str:
    """The name of the command that words begin with."""
    found = [name for name in cli.COMMANDS if words[: len(name.split())] == name.split()]
    assert found, f"titan-motif has no command {' '.join(words[:2])!r}"
    return found[0]


def check_batch_script(command: Command, *_) -> None:
    """A script that bash reads, and a job that its machines can run."""
    script = ROOT / command.words[1]
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    file = command.variables.get("CONFIG_FILE") or re.search(r"CONFIG_FILE:-([^}]+)", text)[1]
    nodes, gpus = (int(re.search(rf"--{x}=(\d+)", text)[1]) for x in ("nodes", "gpus-per-node"))
    arguments = ["--job.config_file", file, *command.words[2:]]
    load_config(arguments, nodes * gpus, runs_here=False)


def check_installation(command: Command, *_) -> None:
    """Only extras that there are, and options of pip's that are known here."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    rest = list(command.words[command.words.index("install") + 1 :])
    for word in rest:
        assert word in ("--constraint", "torch.txt", "--editable", "-e", ".") or re.fullmatch(
            rf"(titan-motif|\.)\[({'|'.join(extras)})\]", word
        ), f"{command}: what is {word}?"


def check_python(command: Command, tmp_path: Path, *_) -> None:
    """It runs, redirection and all."""
    line = command.line.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / command.words[-1]).read_text().startswith("torch==")


def check_tensorboard(command: Command, *_) -> None:
    """A program that torchtitan brings, with its one option."""
    assert "tensorboard" in importlib.metadata.entry_points(group="console_scripts").names
    assert command.words[1] == "--logdir"
    assert len(command.words) == 3


def check_site(command: Command, *_) -> None:
    assert command.words[1:] in (("serve",), ("build",))
    assert (ROOT / "mkdocs.yml").exists()


RULES: dict[str, Callable[..., None]] = {
    r"\./run_train\.sh\b": check_start,
    r"\./run_sft\.sh\b": check_fine_tuning,
    r"\./run_tests\.sh\b": check_test_run,
    r"(\.venv/bin/)?titan-motif \w|torchrun .*-m titan_motif\.cli ": check_titan_motif,
    r"sbatch \S+\.sbatch\b": check_batch_script,
    r"((\.venv/bin/)?python -m |\.venv/bin/)?pip install ": check_installation,
    r"python -c ": check_python,
    r"(\.venv/bin/)?tensorboard ": check_tensorboard,
    r"(\.venv/bin/)?mkdocs ": check_site,
}
"""What a command looks like -> how it is checked."""


def rules_of(command: Command) -> list[Callable[..., None]]:
    line = shlex.join(command.words)
    return [rule for pattern, rule in RULES.items() if re.match(pattern, line)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_of_a_kind_that_is_checked(block: Block, tmp_path: Path):
    known = ("sh", "toml", "python", "json", "text")
    assert block.language in known, f"{block}: name the block's language, one of {known}"
    if block.language == "sh":
        for command in commands_of(block):
            rules = rules_of(command)
            assert len(rules) == 1, f"{command}: RULES has {len(rules)} for it; one is needed"
    elif block.language == "toml":
        (tmp_path / "job.toml").write_text(block.text)
        (tmp_path / "train_configs").symlink_to(ROOT / "train_configs")  # what it may be based on
        arguments = ["--job.config_file", str(tmp_path / "job.toml")]
        if "flavor" not in block.text:  # a part of a file, whose lengths are the real model's
            arguments += ["--model.flavor", "12_7b"]
        load_config(arguments, runs_here=False)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "python":
        tree = ast.parse(block.text)
        imports = [x for x in tree.body if isinstance(x, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), str(block), "exec"), {})


UNIQUE = list({command.line: command for command in COMMANDS}.values())


@pytest.mark.parametrize("command", UNIQUE, ids=str)
def test_every_command_can_be_given(command: Command, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (rule,) = rules_of(command)
    rule(command, tmp_path, monkeypatch)


def test_commands_named_in_a_text_exist():
    for page in PAGES:
        text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.M | re.S)
        for named in re.findall(r"`(?:\.venv/bin/)?titan-motif ([a-z][a-z -]*)", text):
            words = named.split()
            if not any(name.startswith(words[0] + " ") for name in cli.COMMANDS) or words[1:]:
                assert name_of(words), page


def test_a_command_of_no_known_kind_is_told():
    page = ROOT / "docs/index.md"
    (block,) = blocks_of(page, '```sh\nx="make all"\nA=1 $x --fast  # quickly\n```\n')
    (command,) = commands_of(block)
    assert command.words == ("make", "all", "--fast")
    assert command.variables == {"A": "1"}
    assert rules_of(command) == []
    with pytest.raises(AssertionError, match=r"index.md:1: A=1 make all --fast: RULES has 0"):
        test_every_block_is_of_a_kind_that_is_checked(block, Path())
    (unnamed,) = blocks_of(page, "```\nls\n```\n")
    with pytest.raises(AssertionError, match="name the block's language"):
        test_every_block_is_of_a_kind_that_is_checked(unnamed, Path())
    assert len(COMMANDS) > 60


# ---- running what can be run


MY_JOB = """
[model]
hf_assets_path = "data/tokenizer"
[training]
dataset = "prepared"
dataset_path = "data"
steps = -1
[curriculum]
[[curriculum.sources]]
name = "web"
group = "web"
path = "web"
[[curriculum.phases]]
name = "all"
until_tokens = 512
seq_len = 32
global_batch_tokens = 128
weights_start = { web = 1.0 }
[validation]
seq_len = 32
[lr_scheduler]
warmup_steps = 1
"""
RUNS = {
    "outputs/debug": (385,),
    "outputs/small": (9000,),
    "outputs/my": (4000, 5000, 6000, 7000, 8000, 9000),
    "outputs/sft": (900,),
    "outputs/debug_sft_stage3": (86,),
}
EXPORTED = {"evaluation.md": "hf/my", "growth.md": "hf/Motif-2-12.7B"}
"""Folders of safetensors that the commands of a page begin from."""


@pytest.fixture(scope="module")
def folder_of_a_reader(tmp_path_factory, small_corpus: Path) -> Path:
    """The folder of somebody who has data, jobs, and runs of small models."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("data", "texts", "more", "stage2"):
        (folder / name).mkdir()
    for name in ("train_configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "data/builtin").symlink_to(small_corpus)
    words = [
        "the",
        "cat",
        "and",
        "the",
        "dog",
        "see",
        "the",
        "rain",
        "in",
        "spain",
        "stay",
        "mainly",
        "on",
        "the",
        "plain",
    ]
    texts = [" ".join([*words[i % 7 :], str(i), *words]) for i in range(200)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts/a.jsonl").write_text(rows)
    (folder / "more/b.jsonl").write_text(rows)
    (folder / "web.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    for name in ("chat.jsonl", "stage2/a.jsonl"):
        (folder / name).write_text(json.dumps({"messages": turns}) + "\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "the cat"}\n')
    (folder / "my.toml").write_text(MY_JOB)
    large = '[model]\nflavor = "debug"\n' + overrides(LARGE)
    (folder / "large.toml").write_text(large + "[training]\nbuiltin_vocab_size = 512\n")
    for name, steps in RUNS.items():
        write_run(folder / name, steps, small_corpus)
    return folder


@pytest.fixture
def reader(folder_of_a_reader: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of that folder, the current one."""
    folder = tmp_path / "reader"
    shutil.copytree(folder_of_a_reader, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def write_run(folder: Path, steps: tuple[int, ...], corpus: Path) -> None:
    state = random_model(SMALL).float().state_dict()
    shapes = {name: TensorShape(tuple(x.shape), x.dtype) for name, x in state.items()}
    for step in steps:
        write_dcp(folder / f"checkpoint/step-{step}", shapes, state.__getitem__)
    job = f'[model]\nflavor = "debug"\nhf_assets_path = "{corpus / "tokenizer"}"\n'
    job += overrides(SMALL) + "[training]\nbuiltin_vocab_size = 512\n"
    (folder / "config.resolved.toml").write_text(job)
    line = {"step": 1, "loss": 7.0, "lr": 1e-3, "tokens_per_second": 50.0, "time": 1000.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def commands_to_run(page: Path) -> list[tuple[Command, str]]:
    """The commands of a page that are run, and their names."""
    found = [(c, name_of(c.subcommand)) for c in COMMANDS if c.block.page == page and c.subcommand]
    return [(command, name) for command, name in found if name in RUN_WITH]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands_to_run(page)], ids=lambda page: page.name
)
def test_a_pages_commands_run_as_they_are_shown(page: Path, reader: Path, monkeypatch, capsys):
    if "data train-tokenizer" not in {name for _, name in commands_to_run(page)}:
        (reader / "data/tokenizer").symlink_to(reader / "data/builtin/tokenizer")
    exported = EXPORTED.get(page.name)
    if exported:
        export = ["export", "--from", "outputs/my/checkpoint/step-9000", "--to", exported]
        assert cli.main([*export, "--tokenizer", "data/builtin/tokenizer"]) == 0
    for command, name in commands_to_run(page):
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is 2 + 2?\n"))
        # As a shell does: a pattern stands for the files.
        words = [x for word in command.subcommand for x in sorted(glob.glob(word)) or [word]]
        capsys.readouterr()
        code = cli.main([*words, *RUN_WITH[name]])
        assert code == 0, f"{command}: {capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in UNIQUE if "titan-motif plan " in c.line], ids=str)
def test_every_plan_is_made(command: Command, reader: Path):
    assert cli.main(command.subcommand) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [c for c in UNIQUE if check_start in rules_of(c) and "12_7b" not in c.line],
    ids=str,
)
def test_every_start_trains(command: Command, tmp_path: Path, small_corpus: Path):
    """Two steps of what is shown, where a CPU and this machine can: slow, a process each."""
    if {"NNODES", "NGPU"} & command.variables.keys() or "sft_stage" in command.line:
        pytest.skip("it needs more processes than cores, or data of one's own")
    small = [
        *("--training.steps", "2", "--training.builtin_vocab_size", "512"),
        *("--training.dataset_path", str(small_corpus), "--job.dump_folder", str(tmp_path / "run")),
        *("--model.hf_assets_path", "auto", "--lr_scheduler.warmup_steps", "1"),
        *("--summary.sample_tokens", "1", "--validation.steps", "1"),
    ]
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    environment |= command.variables | {"LOG_DIR": str(tmp_path / "logs")}
    process = subprocess.run(
        ["bash", *command.words, *small], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-2000:] + process.stdout[-2000:]
