"""`titan-motif data prune`: what it writes of files of conversations, what it refuses."""

import hashlib
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from small_models import random_model, write_model

import titan_motif.device  # noqa: F401

# isort: split
from titan_motif import cli
from titan_motif.components.preparation.tokenizer import save_tokenizer, train_tokenizer
from titan_motif.components.sft.conversations import read_conversation
from titan_motif.components.sft.template import Sample, load_template
from titan_motif.evaluation import conversation_loss
from titan_motif.evaluation.conversation_loss import conversation_losses
from titan_motif.evaluation.loading import load_model
from titan_motif.model import Motif2ModelArgs

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "lo", "mi")]


def ask(question: str, said: str, **more) -> dict:
    answer = {"role": "assistant", "content": said}
    return {"messages": [{"role": "user", "content": question}, answer], **more}


def draw(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


CLEAN = [ask(draw(n, 9), draw(1000 + n, 30), id=n, name="Zoë ①") for n in range(20)]
BAD = {"text": "none"}
DROPPED = [
    (CLEAN[3], "duplicate", 3),
    (BAD, "bad", None),
    (ask("q", ""), "empty", None),
    (ask("q", f"It is {draw(5, 5)}: 2 + 2 = 5"), "arithmetic", None),
    (ask("q", draw(6, 20) + " Answer: 41", answer="42"), "answer", None),
    (ask("q", "so it goes " * 30), "repetition", None),
    (ask(draw(7, 9), draw(1007, 30) + " indeed"), "near_duplicate", 7),
]


@pytest.fixture
def lines(tmp_path: Path):
    def write(rows: list[dict], name: str = "chat.jsonl") -> Path:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name).write_text(content, encoding="utf-8")
        return tmp_path / name

    return write


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prune(inputs: list[Path], output: Path, *arguments: str) -> int:
    given = ["--inputs", *map(str, inputs), "--output", str(output)]
    return cli.main(["data", "prune", *given, *arguments])


def failure(capsys, inputs: list[Path], output: Path, *arguments: str) -> str:
    capsys.readouterr()
    assert prune(inputs, output, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_stays_is_unchanged_and_what_goes_is_listed(lines, tmp_path: Path, capsys):
    first = lines(CLEAN)
    second = lines([row for row, *_ in DROPPED], "more.jsonl")
    report_file = tmp_path / "report.json"
    arguments = ["--bad-samples", "drop", "--json", str(report_file)]
    assert prune([first, second], tmp_path / "out", *arguments) == 0
    names = ["dropped.jsonl", "kept.jsonl", "report.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert (tmp_path / "out" / "kept.jsonl").read_bytes() == first.read_bytes()
    found = read(tmp_path / "out" / "dropped.jsonl")
    assert len(found) == len(DROPPED)
    for line, (told, (_, rule, repeats)) in enumerate(zip(found, DROPPED, strict=True), start=1):
        assert (told["file"], told["line"], told["rule"]) == (str(second), line, rule)
        place = None if repeats is None else {"file": str(first), "line": repeats + 1}
        assert told.get("repeats") == place
    assert found[0]["detail"] == f"as {first}, line 4"
    assert found[1]["detail"] == "no field 'messages'; its fields are text"
    assert found[2]["detail"] == "message 2 has no text"
    assert found[3]["detail"] == "message 2: 2 + 2 = 5: 4 is not 5"
    assert found[4]["detail"] == "41, where 42 is expected"
    assert found[6]["detail"] == f"{35 / 36:.3f} like {first}, line 8"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert json.loads(report_file.read_text()) == report
    assert (report["rows"], report["kept"], report["compared_with_expected"]) == (27, 20, 1)
    assert report["dropped"] == {
        **{rule: 1 for _, rule, _ in DROPPED},
        "length": 0,
        "question": None,  # off
        "loss": None,
    }
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert report["kept_sha256"] == report["inputs"][0]["sha256"] == digest
    assert report["rules"]["near_duplicates"] == 0.8
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines()]
    assert ["kept", "20", "74.07%"] in table
    (line,) = [line for line in table if line[:1] == ["near_duplicate"]]
    assert line[-2:] == ["1", "3.70%"]
    (line,) = [line for line in table if line[:1] == ["question"]]
    assert line[-1] == "off"
    assert f"prune: bad sample: {second}, line 2: no field 'messages'" in printed


def test_the_same_inputs_give_the_same_files_and_tables_the_same_rows(lines, tmp_path: Path):
    rows = [*CLEAN, *(row for row, rule, _ in DROPPED if rule != "bad")]
    table = tmp_path / "chat.parquet"
    pq.write_table(pa.Table.from_struct_array(pa.array(rows)), table, row_group_size=7)
    inputs = [lines(rows)]
    for number, given in enumerate((inputs, inputs, [table])):
        assert prune(given, tmp_path / f"out{number}", "--keep", "longest") == 0
    for name in ("kept.jsonl", "dropped.jsonl", "report.json"):
        contents = [(tmp_path / f"out{number}" / name).read_bytes() for number in range(2)]
        assert contents[0] == contents[1]
    kept = [read(tmp_path / f"out{number}" / "kept.jsonl") for number in (0, 2)]
    assert kept[0] == kept[1]
    assert [row["id"] for row in kept[0] if "id" in row] == [n for n in range(20) if n != 7]
    assert kept[0][-1] == DROPPED[-1][0]


def test_rules_that_are_off_drop_nothing(lines, tmp_path: Path):
    rows = [row for row, rule, _ in DROPPED if rule != "bad"] * 2
    off = ["--no-empty-answers", "--no-arithmetic", "--no-duplicates", "--answer-field", ""]
    off += ["--max-repeated-runs", "0", "--max-repeated-lines", "0", "--near-duplicates", "0"]
    assert prune([lines(rows)], tmp_path / "out", *off) == 0
    assert read(tmp_path / "out" / "kept.jsonl") == rows
    assert (tmp_path / "out" / "dropped.jsonl").read_bytes() == b""


def test_bad_rows_are_refused_with_their_place(lines, tmp_path: Path, capsys):
    file = lines([*CLEAN[:2], BAD, BAD])
    told = failure(capsys, [file], tmp_path / "out")
    assert told == (
        f"error: {file}, line 3: no field 'messages'; its fields are text; of bad samples there "
        "are 2: mend them, or leave them out (--bad-samples drop)"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jsonl"]
    renamed = lines([{"talk": row["messages"]} for row in CLEAN], "other.jsonl")
    assert prune([renamed], tmp_path / "out", "--messages-field", "talk") == 0
    assert len(read(tmp_path / "out" / "kept.jsonl")) == 20


def test_nothing_is_written_over(lines, tmp_path: Path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    told = failure(capsys, [lines(CLEAN)], tmp_path / "out")
    expected = "holds something, which is not replaced; name another folder"
    assert told == f"error: {tmp_path / 'out'}: {expected}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--near-duplicates", "2"], "--near-duplicates is 2.0; 0 (off) to 1 is needed"),
        (["--max-loss", "4"], "--max-loss is 4.0; it needs --model"),
        (["--device", "cuda:9"], "--device is cuda:9; it needs --model"),
        (["--dtype", "float64"], "--dtype is float64; it needs --model"),
        (
            ["--model", "m", "--min-loss", "7"],
            "--min-loss is 7.0; less than --max-loss, 6.0, is needed",
        ),
        (["--model", "m", "--max-loss", "nan"], "--max-loss is nan; 0 (off) or more is needed"),
        (
            ["--model", "m", "--min-loss-quantile", "1"],
            "--min-loss-quantile is 1.0 and --max-loss-quantile 1.0; 0 to 1, the first less than "
            "the second, are needed",
        ),
        (["--model", "m", "--batch-tokens", "1"], "--batch-tokens is 1; at least 2 is needed"),
    ],
)
def test_options_out_of_range_are_refused(arguments, told: str, lines, tmp_path: Path, capsys):
    assert failure(capsys, [lines(CLEAN)], tmp_path / "out", *arguments) == f"error: {told}"


def test_a_field_that_json_cannot_hold_is_told(tmp_path: Path, capsys):
    file = tmp_path / "chat.parquet"
    pq.write_table(pa.Table.from_pylist([{**CLEAN[0], "raw": b"\x00"}]), file)
    told = failure(capsys, [file], tmp_path / "out")
    assert told.startswith(f"error: {file}, line 1: cannot be written as JSON (Object of type byte")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (f'{{"note": {"[" * 950}{"]" * 950}}}', "nested more than 100 deep"),
        (
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": "q"},
                        {
                            "role": "assistant",
                            "tool_calls": [{"name": "\ud800", "arguments": "{"}],
                        },
                    ]
                }
            ),
            "message 2 calls '\\ud800' with arguments that are no JSON",
        ),
        ('{"\\ud800": 1}', "no field 'messages'; its fields are \\ud800"),
    ],
)
def test_rows_that_cannot_be_walked_or_printed_are_told(
    row: str, told: str, tmp_path: Path, capsys
):
    file = tmp_path / "chat.jsonl"
    file.write_text(f"{json.dumps(CLEAN[0])}\n{row}\n")
    assert failure(capsys, [file], tmp_path / "out").startswith(
        f"error: {file}, line 2: {told}; of"
    )
    assert prune([file], tmp_path / "out", "--bad-samples", "drop") == 0
    (found,) = read(tmp_path / "out" / "dropped.jsonl")
    assert (found["line"], found["rule"], found["detail"]) == (2, "bad", told)
    deep = json.dumps({**CLEAN[0], "note": json.loads("[" * 99 + "]" * 99)}) + "\n"
    file.write_text(deep)
    assert prune([file], tmp_path / "deep") == 0
    assert (tmp_path / "deep" / "kept.jsonl").read_text() == deep.replace("\\u00eb", "ë").replace(
        "\\u2460", "①"
    )


def test_half_a_surrogate_pair_beside_the_messages_is_kept(lines, tmp_path: Path):
    row = {**CLEAN[0], "note": "\ud83d"}
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert prune([file], tmp_path / "out") == 0
    assert read(tmp_path / "out" / "kept.jsonl") == [row]


# ---- the loss


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An exported model of random weights, its tokenizer in it."""
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 4}
    sizes |= {"grouped_ratio": 0, "hidden_dim": 24, "vocab_size": 300, "max_seq_len": 256}
    folder = tmp_path_factory.mktemp("model") / "model"
    write_model(folder, random_model(Motif2ModelArgs(**sizes, kernels="torch")).eval())
    save_tokenizer(train_tokenizer([" ".join(WORDS)], 290), folder.with_name("tokenizer"))
    for file in folder.with_name("tokenizer").iterdir():
        file.rename(folder / file.name)
    return folder


def samples_of(checkpoint: Path, rows: list[dict]) -> list[Sample]:
    return load_template(checkpoint).encode_all([read_conversation(row) for row in rows])


@torch.no_grad()
def losses_alone(checkpoint: Path, samples: list[Sample], most: int = 256) -> list[float]:
    """By the whole pass over each conversation alone, in float64."""
    model, found = load_model(checkpoint), []
    for sample in samples:
        tokens = torch.from_numpy(sample.tokens[:most])
        logs = F.log_softmax(model(tokens[None])[0], dim=-1)
        places = torch.from_numpy(sample.is_learnt[:most]).nonzero()[:, 0].tolist()
        nats = [-logs[place - 1, tokens[place]].item() for place in places]
        found.append(sum(nats) / len(nats) if nats else None)
    return found


LENGTHS = [ask(draw(n, 3 + n % 4), draw(n + 50, 2 + 5 * (n % 7))) for n in range(20)]


@pytest.mark.parametrize("batch_tokens", [40, 500])
def test_losses_in_batches_are_those_alone(checkpoint: Path, batch_tokens: int, monkeypatch):
    monkeypatch.setattr(conversation_loss, "_WINDOW", 4)
    samples = samples_of(checkpoint, LENGTHS[:10])
    lengths = {len(sample.tokens) for sample in samples}
    assert min(lengths) < 40 < max(lengths) < 256
    found = list(conversation_losses(load_model(checkpoint), samples, batch_tokens))
    expected = losses_alone(checkpoint, samples, batch_tokens)
    assert found == [one and pytest.approx(one, rel=1e-5) for one in expected]  # of float32


def test_the_loss_of_what_is_out_of_reach_is_not_known(checkpoint: Path):
    (sample,) = samples_of(checkpoint, [ask(draw(0, 60), "yes")])
    assert list(conversation_losses(load_model(checkpoint), [sample], 32)) == [None]


@pytest.fixture(scope="module")
def losses(checkpoint: Path) -> list[float]:
    return losses_alone(checkpoint, samples_of(checkpoint, LENGTHS))


def test_rows_out_of_the_bounds_of_the_loss_go(
    checkpoint: Path, losses: list[float], lines, tmp_path: Path, capsys
):
    rows = [*LENGTHS, ask("q", "2 + 2 = 5")]
    ordered = sorted(losses)
    least = (ordered[4] + ordered[5]) / 2
    most = (ordered[-8] + ordered[-7]) / 2
    arguments = ["--model", str(checkpoint), "--dtype", "float64", "--device", "cpu"]
    bounds = ["--min-loss", repr(least), "--max-loss", repr(most)]
    off = ["--max-repeated-runs", "0"]
    assert prune([lines(rows)], tmp_path / "out", *arguments, *bounds, *off) == 0
    staying = [row for row, loss in zip(LENGTHS, losses, strict=True) if least < loss < most]
    assert read(tmp_path / "out" / "kept.jsonl") == staying
    assert len(staying) == 8
    found = {told["line"]: told for told in read(tmp_path / "out" / "dropped.jsonl")}
    assert found.pop(21)["rule"] == "arithmetic"
    for line, told in found.items():
        side = f"under {least:.4f}" if losses[line - 1] < least else f"over {most:.4f}"
        assert told["detail"] == f"{losses[line - 1]:.4f} nats a token, {side}"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dropped"]["loss"] == 12
    assert report["loss"]["model"] == str(checkpoint)
    limits = {"least": pytest.approx(least), "most": pytest.approx(most)}
    assert report["loss"]["limits"] == limits
    assert report["loss"]["nats"]["median"] == pytest.approx(sum(ordered[9:11]) / 2)
    assert "prune: nats a token of 20 rows: p1 " in capsys.readouterr().out


def test_rows_out_of_quantiles_go(checkpoint: Path, losses: list[float], lines, tmp_path: Path):
    arguments = ["--model", str(checkpoint), "--dtype", "float64", "--device", "cpu"]
    bounds = ["--min-loss", "0", "--max-loss", "0"]
    shares = ["--min-loss-quantile", "0.1", "--max-loss-quantile", "0.75"]
    assert prune([lines(LENGTHS)], tmp_path / "out", *arguments, *bounds, *shares) == 0
    by_loss = sorted(range(20), key=lambda number: losses[number])
    staying = sorted(by_loss[2:15])  # the quantiles of 20 lie at 1.9 and 14.25
    assert read(tmp_path / "out" / "kept.jsonl") == [LENGTHS[number] for number in staying]


def test_what_a_template_refuses_goes_and_what_is_out_of_reach_stays(
    checkpoint: Path, lines, tmp_path: Path, capsys
):
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for message in messages %}{% if 'odd' in message.content %}"
        "{{ raise_exception('nothing odd') }}{% endif %}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{% endgeneration %}{% else %}"
        "{{ message.content }}{% endif %}{% endfor %}"
    )
    rows = [ask("so odd", "yes"), ask(draw(0, 60), "yes"), ask("why", "no")]
    arguments = ["--model", str(checkpoint), "--chat-template", str(template), "--device", "cpu"]
    arguments += ["--max-loss", "0", "--batch-tokens", "32"]
    assert prune([lines(rows)], tmp_path / "out", *arguments) == 0
    assert read(tmp_path / "out" / "kept.jsonl") == rows[1:]
    (told,) = read(tmp_path / "out" / "dropped.jsonl")
    assert (told["rule"], told["detail"]) == (
        "loss",
        "no loss: the template refuses it: nothing odd",
    )
    assert "prune: 1 rows too long to be judged are kept" in capsys.readouterr().out


def test_a_model_without_a_tokenizer_is_told_before_any_work(
    checkpoint: Path, lines, tmp_path: Path, capsys
):
    told = failure(capsys, [lines([BAD])], tmp_path / "out", "--model", str(tmp_path))
    assert "what tokenizer it has is not known" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jsonl"]
