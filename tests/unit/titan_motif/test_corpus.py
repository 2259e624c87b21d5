"""The built-in corpus: the same bytes every time, true mathematics, damage noticed."""

import hashlib
import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from titan_motif.corpus import code, english, mathematics
from titan_motif.corpus.__main__ import main
from titan_motif.corpus.manifest import load_manifest
from titan_motif.corpus.prepare import _is_ready, prepare, split_documents


def test_preparing_twice_writes_the_same_bytes(small_corpus: Path, tmp_path: Path):
    assert prepare(tmp_path / "again", vocab_size=512, megabytes=0.4)
    first, second = load_manifest(small_corpus), load_manifest(tmp_path / "again")
    assert first == second
    for name, recorded in first["files"].items():
        content = (small_corpus / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == recorded["sha256"]


def test_preparing_again_does_nothing_and_other_settings_do(small_corpus: Path, tmp_path: Path):
    assert not prepare(small_corpus, vocab_size=512, megabytes=0.4)
    assert prepare(tmp_path / "c", vocab_size=400, megabytes=0.2)
    assert not prepare(tmp_path / "c", vocab_size=400, megabytes=0.2)
    assert prepare(tmp_path / "c", vocab_size=401, megabytes=0.2)
    assert load_manifest(tmp_path / "c")["settings"]["vocab_size"] == 401


def test_damage_is_named_and_repaired(tmp_path: Path):
    folder = tmp_path / "c"
    prepare(folder, vocab_size=400, megabytes=0.2)
    tokens = folder / "code" / "train" / "tokens.npy"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=rf"tokens.npy: {len(whole) - 10} bytes long") as caught:
        load_manifest(folder)
    assert "\n" not in str(caught.value)
    assert prepare(folder, vocab_size=400, megabytes=0.2)
    assert tokens.read_bytes() == whole
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json: cannot be read"):
        load_manifest(folder)
    with pytest.raises(ValueError, match=r"no such file; prepare it with: python -m"):
        load_manifest(tmp_path / "elsewhere")


def test_a_folder_of_someone_elses_is_left_alone(tmp_path: Path, capsys):
    tokens = tmp_path / "mine" / "train" / "tokens.npy"
    tokens.parent.mkdir(parents=True)
    tokens.write_bytes(b"precious")
    (tmp_path / "mine" / "manifest.json").write_text('{"files": "of mine"}')
    before = sorted(tmp_path.rglob("*"))
    assert main(["--output", str(tmp_path / "mine"), "--megabytes", "0.2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'mine'}: holds something other than")
    assert 'training.dataset = "prepared"' in line
    assert sorted(tmp_path.rglob("*")) == before
    assert tokens.read_bytes() == b"precious"


def test_an_empty_folder_is_filled_and_nothing_is_left_beside_it(tmp_path: Path):
    (tmp_path / "c").mkdir()
    assert prepare(tmp_path / "c", vocab_size=400, megabytes=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").stat().st_mode == (tmp_path / "c" / "code").stat().st_mode


def test_several_processes_can_prepare_one_folder_at_once(tmp_path: Path):
    arguments = ["--output", str(tmp_path / "c"), "--vocab-size", "400", "--megabytes", "0.2"]
    command = [sys.executable, "-m", "titan_motif.corpus", *arguments]
    started = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[1] for process in started] == ["", "", ""]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert load_manifest(tmp_path / "c")["settings"]["vocab_size"] == 400
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("moment", ["before the last look", "after the last look"])
def test_the_corpus_of_a_faster_process_is_used(moment: str, tmp_path: Path, monkeypatch):
    prepare(tmp_path / "theirs", vocab_size=400, megabytes=0.2)
    looks = []

    def look(output: Path, settings) -> bool:
        looks.append(output)
        ready = _is_ready(output, settings)
        if len(looks) == (1 if moment == "before the last look" else 2):
            (tmp_path / "theirs").rename(output)
        return ready

    monkeypatch.setattr("titan_motif.corpus.prepare._is_ready", look)
    assert not prepare(tmp_path / "c", vocab_size=400, megabytes=0.2)
    monkeypatch.undo()
    assert load_manifest(tmp_path / "c")["settings"]["vocab_size"] == 400
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_vocabulary_that_the_text_cannot_fill_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="not 60000; ask for a smaller"):
        prepare(tmp_path / "c", vocab_size=60_000, megabytes=0.1)


def test_splits_are_disjoint_and_equally_mixed():
    documents = [(g, f"document {i} of group {g} " * 20) for g in range(3) for i in range(500)]
    splits = split_documents(documents, seed=0)
    held_out = set(splits["validation"])
    assert held_out.isdisjoint(splits["train"])
    assert sorted(splits["train"] + splits["validation"]) == sorted(documents)
    for group in range(3):
        share = sum(g == group for g, _ in held_out) / 500
        assert share == pytest.approx(0.02, abs=0.003)
    assert set(split_documents(documents, seed=1)["validation"]) == held_out


@pytest.mark.parametrize("group", ["english", "code", "mathematics"])
def test_tokens_decode_to_the_documents(small_corpus: Path, group: str):
    tokenizer = Tokenizer.from_file(str(small_corpus / "tokenizer" / "tokenizer.json"))
    folder = small_corpus / group / "train"
    tokens, offsets = np.load(folder / "tokens.npy"), np.load(folder / "document_offsets.npy")
    counts = json.loads((small_corpus / "manifest.json").read_text())["splits"]["train"][group]
    assert tokens.dtype == np.uint16
    assert offsets[-1] == len(tokens) == counts["tokens"]
    assert len(offsets) - 1 == counts["documents"]
    text = tokenizer.decode(tokens[: offsets[1] - 1].tolist())
    assert tokenizer.encode(text).ids == tokens[: offsets[1] - 1].tolist()
    assert ("Question: " in text) == (group == "mathematics")
    ends = tokens[offsets[1:] - 1]
    assert set(ends.tolist()) == {tokenizer.token_to_id("<|endoftext|>")}


def test_mathematics_is_true_and_never_repeats():
    problems = list(islice(mathematics.generate(seed=3), 2000))
    assert len(set(problems)) == 2000
    equation = re.compile(r"(\d+(?: [-+x/] \d+)+)(?: \+ \d+ x \d+)? = ")
    for problem in problems:
        assert equation.search(problem) or "Each gets" in problem, problem
        for step in problem.split("\n")[1:-1]:
            for chain in re.findall(r"\d+(?: (?:[-+x/=]) \d+)+", step):
                sides = [side.replace("x", "*") for side in chain.split(" = ")]
                assert len({eval(side) for side in sides}) == 1, problem
        answer = int(re.fullmatch(r"Answer: (\d+)\.", problem.split("\n")[-1]).group(1))
        assert re.search(rf"\b{answer}\b", problem.split("\n")[-2]), problem


def test_the_same_seed_gives_the_same_problems():
    first = list(islice(mathematics.documents(5), 20))
    assert first == list(islice(mathematics.documents(5), 20))
    assert first != list(islice(mathematics.documents(6), 20))


def test_sources_are_the_standard_librarys_and_read_without_importing():
    names = {path.name for path in code.source_files()}
    assert {"argparse.py", "heapq.py", "textwrap.py"} <= names
    assert not any("test" in path.parent.parts for path in code.source_files())
    prose = list(english.documents())
    assert len(prose) == len(set(prose)) > 200
    assert any("heap" in text for text in prose)
