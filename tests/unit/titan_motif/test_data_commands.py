"""`titan-motif data prepare | train-tokenizer | inspect`: from files to figures, by the command."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from titan_motif import cli
from titan_motif.components.preparation.manifest import tokenizer_sha256

TEXTS = [f"The cat {number} sat on {'a mat, ' * (number % 7)}and ran." for number in range(60)]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    rows = [{"body": text, "license": ("mit", "bsd")[n % 3 == 0]} for n, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return path


@pytest.fixture
def tokenizer(lines: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    arguments = ["--inputs", str(lines), "--output", str(folder), "--text-field", "body"]
    assert (
        cli.main(
            [
                "data",
                "train-tokenizer",
                *arguments,
                "--vocab-size",
                "290",
                "--json",
                str(tmp_path / "trained.json"),
            ]
        )
        == 0
    )
    return folder


@pytest.fixture
def source(lines: Path, tokenizer: Path, tmp_path: Path) -> Path:
    arguments = ["--inputs", str(lines), "--output", str(tmp_path / "out")]
    arguments += ["--tokenizer", str(tokenizer), "--text-field", "body", "--workers", "0"]
    arguments += ["--licence-field", "license", "--validation-share", "0.1", "--deduplicate"]
    assert cli.main(["data", "prepare", *arguments, "--json", str(tmp_path / "table.json")]) == 0
    return tmp_path / "out"


def failure(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert cli.main(["data", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_tokenizer_of_the_texts_is_trained(tokenizer: Path, lines: Path, capsys):
    names = ["token_bytes.npy", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in tokenizer.iterdir()) == names
    assert sorted(path.name for path in tokenizer.parent.iterdir()) == [
        "a.jsonl",
        "tokenizer",
        "trained.json",
    ]
    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert loaded.get_vocab_size() == 290
    told = json.loads((tokenizer.parent / "trained.json").read_text())
    assert (told["vocab_size"], told["documents"], told["bad_lines"]) == (290, 61, [])
    assert told["sha256"] == tokenizer_sha256(tokenizer)
    assert len(loaded.encode("The cat sat").ids) < len("The cat sat") / 2
    same = ["--inputs", str(lines), "--output", str(tokenizer)]
    told = f"error: {tokenizer}: holds something, which is not replaced; name another folder"
    assert failure(["train-tokenizer", *same], capsys) == told


def test_training_reads_no_more_than_is_asked_for_and_stops_at_bad_lines(
    lines: Path, tmp_path: Path, capsys
):
    common = ["--inputs", str(lines), "--output", str(tmp_path / "new"), "--vocab-size", "264"]
    few = [*common, "--text-field", "body", "--max-megabytes", "0.0005"]
    assert cli.main(["data", "train-tokenizer", *few]) == 0
    num_documents = next(n for n in range(60) if sum(map(len, TEXTS[:n])) >= 500)
    assert f"264 entries from {num_documents} documents" in capsys.readouterr().out
    common[3] = str(tmp_path / "other")
    told = failure(["train-tokenizer", *common, "--max-bad-lines", "3"], capsys)
    expected = f"error: more than 3 bad lines; the first: {lines}, line 1: no field 'text'; its fie"
    assert told.startswith(expected)
    for given, shown in (("0", "0.0"), ("nan", "nan")):
        told = failure(["train-tokenizer", *common, "--max-megabytes", given], capsys)
        assert told == f"error: --max-megabytes is {shown}; more than 0 is needed"
    told = failure(["train-tokenizer", *common, "--max-bad-lines", "-1"], capsys)
    assert told == "error: --max-bad-lines is -1; at least 0 is needed"
    told = failure(
        ["train-tokenizer", *few[:3], str(tmp_path / "other"), "--text-field", "body"], capsys
    )
    assert "ask for a smaller vocabulary" in told
    assert not (tmp_path / "other").exists()


def test_prepare_writes_what_its_options_say(source: Path, tokenizer: Path, lines: Path):
    manifest = json.loads((source / "manifest.json").read_text())
    assert json.loads((source.parent / "table.json").read_text()) == manifest
    content = lines.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert manifest["inputs"] == [{"path": str(lines), "bytes": len(content), "sha256": digest}]
    assert manifest["input_format"] == "jsonl"
    assert (manifest["text_field"], manifest["licence_field"]) == ("body", "license")
    assert (manifest["validation_share"], manifest["seed"]) == (0.1, 0)
    assert (manifest["duplicates"], manifest["deduplicated"]) == (1, True)
    assert manifest["licences"] == {"bsd": 20, "mit": 40}
    assert sum(split["documents"] for split in manifest["splits"].values()) == 60
    assert 3 <= manifest["splits"]["validation"]["documents"] <= 9
    tokens = np.load(source / "train" / "tokens.npy")
    text = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).decode(
        tokens.tolist(), skip_special_tokens=False
    )
    assert set(text.split("<|endoftext|>")) < {*TEXTS, ""}


def test_inspect_tells_counts_lengths_and_samples(
    source: Path, tokenizer: Path, tmp_path: Path, capsys
):
    file = tmp_path / "figures.json"
    arguments = ["--tokenizer", str(tokenizer), "--samples", "2", "--verify", "--json", str(file)]
    capsys.readouterr()
    assert cli.main(["data", "inspect", str(source), *arguments]) == 0
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    manifest = json.loads((source / "manifest.json").read_text())
    offsets = np.load(source / "train" / "document_offsets.npy")
    lengths = np.diff(offsets)
    train = content["splits"]["train"]
    assert train["documents"] == len(lengths) == manifest["splits"]["train"]["documents"]
    assert train["tokens"] == offsets[-1]
    assert train["document_tokens"] == {
        "min": lengths.min(),
        "median": np.median(lengths),
        "mean": pytest.approx(lengths.mean()),
        "p95": pytest.approx(np.percentile(lengths, 95)),
        "max": lengths.max(),
    }
    assert content["licences"] == {"bsd": 20, "mit": 40}
    assert content["tokenizer"] == manifest["tokenizer"]
    samples = content["samples"]
    assert [sample["tokens"] for sample in samples] == lengths[:2].tolist()
    for sample in samples:
        text = sample["text"].removesuffix("<|endoftext|>")
        assert text in TEXTS
        assert text in printed
    assert "duplicates 1 (left out), empty 0, bad lines 0" in printed
    assert "licence bsd: 20 documents" in printed
    assert printed.endswith("verified: 4 files have the hashes of the manifest\n")


def test_inspect_without_a_tokenizer_shows_ids(source: Path, capsys):
    capsys.readouterr()
    assert cli.main(["data", "inspect", str(source), "--samples", "1"]) == 0
    first = np.load(source / "train" / "tokens.npy")[
        : np.load(source / "train" / "document_offsets.npy")[1]
    ]
    assert capsys.readouterr().out.endswith("\n" + " ".join(map(str, first)) + "\n")


def test_inspect_finds_what_changed(source: Path, tokenizer: Path, tmp_path: Path, capsys):
    file = source / "train" / "tokens.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
    assert cli.main(["data", "inspect", str(source)]) == 0
    told = failure(["inspect", str(source), "--verify"], capsys)
    assert told.startswith(f"error: {file}: changed since preparation: SHA-256 ")
    file.write_bytes(whole[:-2])
    told = failure(["inspect", str(source)], capsys)
    needed = len(whole)
    assert told == (
        f"error: {file}: {needed - 2} bytes, shortened since preparation; the manifest says "
        f"{needed} bytes"
    )
    file.write_bytes(whole)
    config = tokenizer / "tokenizer.json"
    whole = config.read_text()
    names = tokenizer / "tokenizer_config.json"
    names.write_text(
        names.read_text().replace('"eos_token": "<|endoftext|>"', '"eos_token": "<|pad|>"')
    )
    told = failure(["inspect", str(source), "--tokenizer", str(tokenizer)], capsys)
    assert told == (
        f"error: {names}: documents end with '<|pad|>'; in the source they end with '<|endoftext|>'"
    )
    config.write_text(whole + "\n")
    told = failure(["inspect", str(source), "--tokenizer", str(tokenizer)], capsys)
    assert told.startswith(f"error: {config}: changed since preparation, or another one: SHA-256 ")
    manifest = source / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    told = failure(["inspect", str(source)], capsys)
    assert told.startswith(f"error: {manifest}: edited since preparation")


@pytest.mark.parametrize("command", ["prepare", "inspect"])
def test_a_figures_file_that_cannot_be_is_told_first(command: str, tmp_path: Path, capsys):
    arguments = ["inspect", str(tmp_path)]
    if command == "prepare":
        arguments = ["prepare", "--inputs", "x", "--output", str(tmp_path / "out")]
        arguments += ["--tokenizer", str(tmp_path)]
    told = failure([*arguments, "--json", "/nowhere/table.json"], capsys)
    assert told == "error: --json is /nowhere/table.json; the folder /nowhere does not exist"
    told = failure([*arguments, "--json", str(tmp_path)], capsys)
    assert told == f"error: --json is {tmp_path}; that is a folder, and a file is needed"
    told = failure(arguments, capsys)
    missing = "manifest.json" if command == "inspect" else "tokenizer.json"
    assert told.startswith(f"error: {tmp_path / missing}: no such file; ")


def test_a_source_without_held_out_documents_is_told_too(
    lines: Path, tokenizer: Path, tmp_path: Path, capsys
):
    arguments = ["--inputs", str(lines), "--output", str(tmp_path / "all"), "--workers", "0"]
    arguments += ["--tokenizer", str(tokenizer), "--text-field", "body", "--validation-share", "0"]
    assert cli.main(["data", "prepare", *arguments]) == 0
    capsys.readouterr()
    assert cli.main(["data", "inspect", str(tmp_path / "all"), "--samples", "0"]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith(" validation")]
    assert line.split() == ["validation", "0", "0", "0.00", "-", "-", "-", "-", "-"]
    assert "duplicates 1 (kept)" in printed
    assert "licence" not in printed
    told = failure(["inspect", str(tmp_path / "all"), "--samples", "-1"], capsys)
    assert told == "error: --samples is -1; at least 0 is needed"


def test_a_licence_field_that_no_document_has_is_told(
    lines: Path, tokenizer: Path, tmp_path: Path, capsys
):
    arguments = ["--inputs", str(lines), "--output", str(tmp_path / "out"), "--workers", "0"]
    arguments += ["--tokenizer", str(tokenizer), "--text-field", "body"]
    assert cli.main(["data", "prepare", *arguments, "--licence-field", "licence"]) == 0
    assert "warning: no document has the licence field 'licence'; " in capsys.readouterr().out


def test_inspect_shows_tokens_without_a_manifest(source: Path, tmp_path: Path, capsys):
    """As those of the built-in corpus are; only what the files themselves tell."""
    (source / "manifest.json").unlink()
    capsys.readouterr()
    assert cli.main(["data", "inspect", str(source), "--samples", "0"]) == 0
    printed = capsys.readouterr().out
    num_tokens = len(np.load(source / "train" / "tokens.npy"))
    (line,) = [line for line in printed.splitlines() if line.startswith(" train")]
    assert line.split()[2:4] == [f"{num_tokens:,}", "-"]
    assert "no manifest: of tokenizer, licences and duplicates nothing is known" in printed
    told = failure(["inspect", str(source), "--verify"], capsys)
    assert "manifest.json: no such file; without it nothing can be verified" in told
    told = failure(["inspect", str(tmp_path)], capsys)
    assert (
        told
        == f"error: {tmp_path}: a folder of the sources out; name one of them, such as {source}"
    )


def test_inspect_names_the_file_with_damaged_offsets(source: Path, capsys):
    file = source / "train" / "document_offsets.npy"
    offsets = np.load(file)
    offsets[1], offsets[2] = offsets[2], offsets[1]
    np.save(file, offsets)
    told = failure(["inspect", str(source)], capsys)
    assert told.startswith(f"error: {file}: damaged: document 1 has -")
    np.save(file, offsets[:-1])
    size = file.stat().st_size
    assert f"error: {file}: {size} bytes, shortened since" in failure(
        ["inspect", str(source)], capsys
    )
