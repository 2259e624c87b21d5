"""A job that fine-tunes: what its section stands for, and what is wrong with one."""

import json
import re
from pathlib import Path

import pytest

import titan_motif.device  # noqa: F401
from titan_motif import check_config, cli
from titan_motif.config_loading import load_config
from titan_motif.curriculum import build_loader
from titan_motif.plugin import document_inputs
from titan_motif.sft import prepare_sft

ROOT = Path(__file__).resolve().parents[3]

JOB = """
[model]
name = "motif2"
flavor = "debug"
hf_assets_path = "{tokenizer}"
[training]
dataset_path = "{folder}/packed"
seq_len = 64
local_batch_size = 2
global_batch_size = 4
steps = -1
[sft]
enable = true
data = ["{folder}/*.jsonl"]
epochs = 3
validation_share = 0.1
[lr_scheduler]
warmup_ratio = 0.25
[validation]
enable = true
seq_len = 64
"""


def write_conversations(file: Path, turns: list[tuple[str, str]]) -> None:
    """Write conversations of one question and one answer."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in turns
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def job(tiny_tokenizer: Path, tmp_path: Path) -> list[str]:
    """The arguments of a job on 40 conversations."""
    turns = [(f"the cat {i}", f"the rat {i}") for i in range(40)]
    write_conversations(tmp_path / "chat.jsonl", turns)
    file = tmp_path / "job.toml"
    file.write_text(JOB.format(tokenizer=tiny_tokenizer, folder=tmp_path))
    return ["--job.config_file", str(file)]


def test_a_job_is_packed_before_it_starts_and_then_counts_its_steps(
    job: list[str], tmp_path: Path, capsys
):
    before = load_config(job, 2, runs_here=False)
    assert before.training.steps == -1
    assert check_config.main(["--world-size", "2", *job]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "chat: train: " in told.err
    config = load_config(job, 2)
    manifest = json.loads((tmp_path / "packed" / "manifest.json").read_text())
    sequences = manifest["splits"]["train"]["sequences"]
    assert config.training.steps == -(-3 * sequences // 4)
    assert config.training.dataset == "prepared"
    assert config.training.mask_documents
    assert config.training.restart_positions
    # A second start finds it done.
    assert check_config.main(["--world-size", "2", *job]) == 0
    assert capsys.readouterr().err == ""


def test_a_run_is_told_which_tokens_belong_together(job: list[str], tiny_tokenizer: Path):
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    assert check_config.main(["--world-size", "2", *job]) == 0
    config = load_config(job, 2)
    documents = document_inputs(HuggingFaceTokenizer(str(tiny_tokenizer)), config)
    inputs, labels = next(iter(build_loader(config, 0, 2, documents)))
    ids, positions = inputs["document_ids"], inputs["positions"]
    assert inputs["input"].shape == labels.shape == (2, 64)
    begins = ids.diff(dim=1, prepend=ids[:, :1] - 1) != 0
    assert begins.sum() > 4
    assert (positions[begins] == 0).all()
    inside = ~begins[:, 1:]
    assert (positions[:, 1:][inside] == positions[:, :-1][inside] + 1).all()
    learnt = labels[:, :-1] != -100
    assert (labels[:, :-1][learnt] == inputs["input"][:, 1:][learnt]).all()
    assert inside[learnt].all(), "nothing is predicted over a sample's end"


def test_the_data_commands_read_it_as_any_other(job: list[str], tmp_path: Path, capsys):
    assert check_config.main(["--world-size", "1", *job]) == 0
    capsys.readouterr()
    file = ["--config", job[1]]
    table = tmp_path / "trace.json"
    assert cli.main(["data", "trace", *file, "--step", "1", "--json", str(table)]) == 0
    sequences = json.loads(table.read_text())["sequences"]
    assert [one["seq_len"] for one in sequences] == [64] * 4
    assert (
        cli.main(["data", "preview", *file, "--ranks", "2", "--png", str(tmp_path / "preview.png")])
        == 0
    )
    assert "steps, " in capsys.readouterr().out


def test_packed_samples_are_kept_apart_in_any_job(job: list[str], tmp_path: Path):
    assert check_config.main(["--world-size", "1", *job]) == 0
    plain = tmp_path / "plain.toml"
    before = Path(job[1]).read_text().split("[sft]")[0]
    plain.write_text(before.replace("steps = -1", 'steps = 2\ndataset = "prepared"'))
    arguments = ["--job.config_file", str(plain)]
    with pytest.raises(ValueError, match=r"training\.mask_documents is false; 'packed' holds"):
        load_config(arguments, 1)
    load_config([*arguments, "--training.mask_documents"], 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--sft.data="], "sft.data is empty; files of conversations are needed"),
        (["--sft.epochs=0"], "sft.epochs is 0.0; more than 0 is needed"),
        (["--sft.validation_share=0.7"], "sft.validation_share is 0.7; 0.0 to 0.5 is allowed"),
        (["--sft.validation_share=0"], "is 0; validation.enable is true, and needs some samples"),
        (["--validation.seq_len=32"], "validation.seq_len is 32; samples are packed into"),
        (["--sft.enable=false", "--training.steps=1"], "it needs sft.enable to be true"),
        (["--sft.data=none.jsonl"], "none.jsonl: no such file or folder"),
        (["--sft.chat_template=none.jinja"], "none.jinja: cannot be read as a template"),
        (["--lr_scheduler.warmup_steps=3"], "warmup_ratio is 0.25 and warmup_steps is 3; one of"),
        (["--lr_scheduler.warmup_ratio=2"], "lr_scheduler.warmup_ratio is 2; 0.0 to 1.0 is"),
        (["--model.hf_assets_path=none"], "hf_assets_path is 'none'; it holds no tok"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_starts(
    job: list[str], settings: list[str], message: str, capsys
):
    assert check_config.main(["--world-size", "2", *job, *settings]) == 2
    told = capsys.readouterr().err.splitlines()
    assert message in told[-1]
    assert len([line for line in told if line.startswith("error: ")]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--checkpoint.enable", "--checkpoint.initial_load_path=nowhere"],
            "initial_load_path is 'nowhere'; no such folder",
        ),
        (["--model.hf_assets_path=none"], "model.hf_assets_path is 'none'; it holds no tokenizer"),
        (["--parallelism.data_parallel_shard_degree=3"], "data_parallel_shard_degree"),
        (["--sft.data="], "sft.data is empty"),
    ],
)
def test_what_is_wrong_without_packing_is_told_before(
    job: list[str], settings: list[str], message: str, tmp_path: Path, capsys
):
    assert check_config.main(["--world-size", "2", *job, *settings]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert message in told
    assert not (tmp_path / "packed").exists()


def test_a_bad_sample_is_told_by_its_line_before_anything_starts(
    job: list[str], tmp_path: Path, capsys
):
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "?"}]}\n')
    assert check_config.main(["--world-size", "2", *job]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "chat.jsonl, line 41: no message is the assistant's" in error


def test_what_was_packed_otherwise_is_not_read(job: list[str], capsys):
    assert check_config.main(["--world-size", "2", *job]) == 0
    capsys.readouterr()
    with pytest.raises(ValueError, match="packed with reasoning 'keep', and the job has 'drop'"):
        load_config([*job, "--sft.reasoning=drop"], 2)
    assert check_config.main(["--world-size", "2", *job, "--sft.reasoning=drop"]) == 2
    assert "holds a source of other settings (chat)" in capsys.readouterr().err


def test_what_is_packed_of_other_files_or_a_template_is_not_read(
    job: list[str], tmp_path: Path, capsys
):
    assert check_config.main(["--world-size", "2", *job]) == 0
    load_config(job, 2)
    packed = f"training.dataset_path is '{tmp_path}/packed'; it is packed"
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")

    def refused(*settings: str) -> str:
        with pytest.raises(ValueError, match=re.escape(packed)) as raised:
            load_config([*job, *settings], 2)
        return str(raised.value).partition(f"{packed} ")[2]

    told = refused(f"--sft.chat_template={tmp_path}/own.jinja")
    assert told == (
        f"with another chat template than that of {tmp_path}/own.jinja, which the job has: name "
        "another folder, or remove that one"
    )
    size = (tmp_path / "chat.jsonl").stat().st_size
    of = f"of {tmp_path}/chat.jsonl ({size:,} bytes), and the job has"
    write_conversations(tmp_path / "other.json", [("the cat", "the rat")])
    added = size + (tmp_path / "other.json").stat().st_size
    more = f"--sft.data={tmp_path}/chat.jsonl,{tmp_path}/other.json"
    assert refused(more).startswith(
        f"{of} {tmp_path}/chat.jsonl and 1 more ({added:,} bytes): name another folder"
    )
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write("\n")
    assert refused().startswith(f"{of} {tmp_path}/chat.jsonl ({size + 1:,} bytes): name another")
    (tmp_path / "chat.jsonl").unlink()
    with pytest.raises(ValueError, match=r"sft\.data is \['.*'\]; .*: matches no file"):
        load_config(job, 2)


def test_a_job_is_not_started_without_its_packed_data(job: list[str]):
    with pytest.raises(ValueError, match=r"not packed there yet: run_train\.sh does so"):
        load_config([*job, "--training.steps=3"], 2)


def test_the_reports_stages_follow_each_other_as_their_files_say(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("titan_motif.config_float8.float8_problem", lambda: None)
    files = [ROOT / "train_configs" / f"sft_stage{stage}.toml" for stage in (1, 2, 3)]
    monkeypatch.chdir(tmp_path)
    stage2 = tmp_path / "data/conversations/stage2"
    stage2.mkdir(parents=True)
    texts = ["the cat sat on the mat", "the rat ran", "the rat ran", "the rat sat on the mat"]
    write_conversations(stage2 / "some.jsonl", [(f"{text}?", text) for text in texts])
    (told,) = re.findall(r"^# +titan-motif (data prune .*)$", files[2].read_text(), re.MULTILINE)
    assert cli.main(told.split()) == 0
    beside = ["--model.hf_assets_path", str(tiny_tokenizer), "--training.seq_len", "64"]
    beside += ["--validation.seq_len", "64"]
    before = None
    for file in files:
        config = load_config(["--job.config_file", str(file), *beside], None, runs_here=False)
        if before is not None:
            assert config.checkpoint.initial_load_path == f"{before.job.dump_folder}/checkpoint"
        before = config
    # The folder that was written has what was dropped, too: of a row that repeats another.
    manifest = prepare_sft(before)
    assert sum(split["documents"] for split in manifest["splits"].values()) == 3
    assert [Path(one["path"]).name for one in manifest["inputs"]] == ["kept.jsonl"]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "train_configs").glob("*.toml")), ids=lambda f: f.stem
)
def test_a_configs_lines_are_as_short_as_the_codes(file: Path):
    assert [line for line in file.read_text().splitlines() if len(line) > 100] == []
