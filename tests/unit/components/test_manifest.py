"""The manifest of a source: what it records, and that every change since is told in one line."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from titan_motif.components.preparation.manifest import (
    FORMAT,
    check_tokenizer,
    load_manifest,
    tokenizer_sha256,
    verify_files,
    write_manifest,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "tokens.npy").write_bytes(b"tokens")
    (folder / "train" / "document_offsets.npy").write_bytes(b"offsets")
    content = {"tokenizer": {"sha256": "0" * 64}, "inputs": [], "splits": {}, "seed": 3}
    write_manifest(folder, content)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load_manifest(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_records_size_and_hash_of_every_file_and_its_own(source: Path):
    manifest = load_manifest(source)
    assert manifest["format"] == FORMAT == 2
    assert manifest["seed"] == 3
    assert manifest["files"] == {
        f"train/{name}.npy": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in (("document_offsets", b"offsets"), ("tokens", b"tokens"))
    }
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    canonical = json.dumps(rest, sort_keys=True).encode()
    assert manifest["sha256"] == hashlib.sha256(canonical).hexdigest()
    assert sorted(path.name for path in source.iterdir()) == ["manifest.json", "train"]


def test_writing_it_again_gives_the_same_and_leaves_itself_out(source: Path):
    before = (source / "manifest.json").read_bytes()
    manifest = load_manifest(source)
    rest = {key: manifest[key] for key in ("tokenizer", "inputs", "splits", "seed")}
    assert write_manifest(source, rest) == manifest
    assert (source / "manifest.json").read_bytes() == before


def test_an_edit_is_noticed_and_another_layout_is_none(source: Path):
    path = source / "manifest.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text), sort_keys=True))
    assert load_manifest(source)["seed"] == 3
    path.write_text(text.replace('"seed": 3', '"seed": 4'))
    assert "manifest.json: edited since preparation" in refusal(source)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file; `titan-motif data prepare` writes it"),
        ("{", "cannot be read as JSON"),
        ("[]", "of format None; a manifest of a source, format 2, is needed"),
        ('{"format": 1}', "of format 1; a manifest"),
        ('{"format": 2, "files": {}}', "incomplete; a manifest"),
    ],
)
def test_what_is_no_manifest_is_told(content: str | None, told: str, source: Path):
    path = source / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert told in refusal(source)


def test_files_of_another_size_are_noticed(source: Path):
    file = source / "train" / "tokens.npy"
    file.write_bytes(b"toke")
    expected = f"{file}: 4 bytes, shortened since preparation; the manifest says 6 bytes"
    assert refusal(source) == expected
    file.write_bytes(b"tokens and more")
    assert "15 bytes, lengthened since preparation" in refusal(source)
    file.unlink()
    assert refusal(source) == f"{file}: missing since preparation; the manifest says 6 bytes"


def test_verifying_reads_what_sizes_do_not_tell(source: Path):
    manifest = load_manifest(source)
    assert list(verify_files(source, manifest)) == []
    file = source / "train" / "tokens.npy"
    file.write_bytes(b"tokenS")
    assert load_manifest(source) == manifest
    (finding,) = verify_files(source, manifest)
    found = hashlib.sha256(b"tokenS").hexdigest()[:12]
    assert finding.startswith(f"{file}: changed since preparation: SHA-256 {found}..., the manifes")
    file.unlink()
    (finding,) = verify_files(source, manifest)
    assert finding == f"{file}: cannot be read (No such file or directory)"


def test_another_tokenizer_is_refused(source: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"tokenizer.json: no such file; a tokenizer folder"):
        tokenizer_sha256(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    assert tokenizer_sha256(tmp_path) == digest
    with pytest.raises(ValueError, match=r"tokenizer.json: changed since preparation, or another"):
        check_tokenizer(load_manifest(source), tmp_path)
    own = {"sha256": digest, "end_of_text": "<|endoftext|>"}
    check_tokenizer({"tokenizer": own}, tmp_path)
