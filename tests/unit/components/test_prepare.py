"""Preparing a source: exact tokens, the same bytes whatever happens on the way, clear refusals."""

import json
import multiprocessing
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models

from titan_motif.components.preparation import tokenize_units
from titan_motif.components.preparation.assemble import select
from titan_motif.components.preparation.manifest import load_manifest, verify_files
from titan_motif.components.preparation.prepare import PrepareOptions, prepare_source
from titan_motif.components.preparation.tokenize_units import DOCUMENT
from titan_motif.components.preparation.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

TEXTS = [f"the cat {number} sat on {'the mat, ' * (number % 11)}naïve" for number in range(200)]


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "licence": "MIT"}) + "\n" for text in texts))
    return path


@pytest.fixture
def options(tmp_path: Path, tiny_tokenizer: Path) -> PrepareOptions:
    """A source of 200 documents, prepared in this process."""
    path = write_lines(tmp_path / "a.jsonl", TEXTS)
    return PrepareOptions((str(path),), tmp_path / "out", tiny_tokenizer, workers=0)


def documents(folder: Path) -> list[list[int]]:
    """Return the tokens of each document of a split."""
    tokens = np.load(folder / "tokens.npy")
    offsets = np.load(folder / "document_offsets.npy")
    assert offsets.dtype == np.int64
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens)
    return [tokens[begin:end].tolist() for begin, end in pairwise(offsets)]


def all_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refusal(options: PrepareOptions) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        prepare_source(options, unit_bytes=2000)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "text", "huggingface"])
def test_every_format_gives_the_tokens_of_encode(
    kind: str, options: PrepareOptions, tmp_path: Path
):
    table = pa.table({"text": TEXTS})
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path = tmp_path / "a.jsonl"
    elif kind == "parquet":
        pq.write_table(table, path, row_group_size=30)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=30)
    elif kind == "text":
        path.mkdir()
        for number, text in enumerate(TEXTS):
            (path / f"{number}.txt").write_text(text)
    else:
        import datasets

        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path))
    manifest = prepare_source(replace(options, inputs=(str(path),)), unit_bytes=2000)
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    expected = sorted([*tokenizer.encode(text).ids, 0] for text in TEXTS)
    found = {name: documents(options.output / name) for name in ("train", "validation")}
    assert sorted(found["train"] + found["validation"]) == expected
    for name, split in found.items():
        assert manifest["splits"][name]["documents"] == len(split)
        assert manifest["splits"][name]["tokens"] == sum(map(len, split))
    num_bytes = sum(split["bytes"] for split in manifest["splits"].values())
    assert num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert manifest["largest_id"] == max(map(max, expected))
    assert (
        manifest["dtype"] == str(np.load(options.output / "train" / "tokens.npy").dtype) == "uint16"
    )
    assert manifest["input_format"] == kind


def test_the_bytes_do_not_depend_on_workers_or_units(options: PrepareOptions, tmp_path: Path):
    sources = {}
    for name, workers, unit_bytes in (
        ("0", 0, 1000),
        ("1", 1, 1000),
        ("2", 2, 1000),
        ("u", 0, 10**7),
    ):
        changed = replace(options, output=tmp_path / name, workers=workers)
        prepare_source(changed, unit_bytes=unit_bytes)
        sources[name] = all_bytes(tmp_path / name)
        assert not (tmp_path / f"{name}.preparing").exists()
    assert sources["0"] == sources["1"] == sources["2"] == sources["u"]
    assert sources["0"].keys() == {"manifest.json"} | {
        f"{split}/{file}.npy"
        for split in ("train", "validation")
        for file in ("tokens", "document_offsets")
    }


def test_the_seed_orders_and_nothing_else(options: PrepareOptions, tmp_path: Path):
    prepare_source(options)
    prepare_source(replace(options, output=tmp_path / "other", seed=1))
    for name in ("train", "validation"):
        first, second = documents(tmp_path / "out" / name), documents(tmp_path / "other" / name)
        assert sorted(first) == sorted(second)
    first, second = (documents(tmp_path / name / "train") for name in ("out", "other"))
    tokenizer = load_tokenizer(options.tokenizer).tokenizer
    places = {tuple(tokenizer.encode(text).ids): place for place, text in enumerate(TEXTS)}
    order = np.array([places[tuple(ids[:-1])] for ids in first])
    assert first != second
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.25  # 3.5 standard deviations


SLOW = """
import sys
from pathlib import Path
from titan_motif.components.preparation.prepare import PrepareOptions, prepare_source
options = PrepareOptions((sys.argv[1],), Path(sys.argv[2]), Path(sys.argv[3]), workers=2)
prepare_source(options, unit_bytes=20_000)
"""


def running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_kill_loses_no_finished_unit_and_changes_nothing(
    options: PrepareOptions, tmp_path: Path, capsys
):
    path = write_lines(tmp_path / "b.jsonl", [f"{n} {TEXTS[n % 200]}" for n in range(12_000)])
    options = replace(options, inputs=(str(path),))
    command = [sys.executable, "-c", SLOW, str(path), str(options.output), str(options.tokenizer)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    work = tmp_path / "out.preparing"
    while len(list(work.glob("units/*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    assert re.search(rf"in use by another command \(process {process.pid}\)", refusal(options))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 3  # two workers, and what multiprocessing keeps beside them
    process.kill()
    process.wait()
    assert not options.output.exists()
    while any(running(int(child)) for child in children):  # workers end with their parent
        time.sleep(0.01)
    kept = {path.name for path in work.glob("units/*.json")}
    prepare_source(replace(options, workers=2), unit_bytes=20_000)
    told = re.search(r"(\d+) of (\d+) units kept from an earlier start", capsys.readouterr().out)
    assert 3 <= int(told[1]) == len(kept) < int(told[2])
    assert "000000.json" in kept
    prepare_source(replace(options, output=tmp_path / "whole"), unit_bytes=20_000)
    assert all_bytes(options.output) == all_bytes(tmp_path / "whole")


def test_a_restart_of_something_else_begins_anew(options: PrepareOptions, tmp_path: Path, capsys):
    path = tmp_path / "a.jsonl"
    write_lines(path, [*TEXTS, "more"])
    with path.open("a") as file:
        file.write("broken\n")
    assert "1 bad lines, over the limit of 0" in refusal(replace(options, max_bad_lines=0))
    num_units = len(list((tmp_path / "out.preparing" / "units").glob("*.json")))
    assert num_units > 5
    capsys.readouterr()
    refusal(replace(options, max_bad_lines=0, seed=1))  # tokens do not depend on the seed
    assert f"{num_units} of {num_units + 1} units kept from" in capsys.readouterr().out
    write_lines(path, TEXTS)
    splits = prepare_source(options, unit_bytes=2000)["splits"]
    assert splits["train"]["documents"] + splits["validation"]["documents"] == 200
    printed = capsys.readouterr().out
    assert "an earlier start is of other inputs or settings; beginning anew" in printed
    assert "kept from" not in printed


def test_a_source_that_is_there_is_not_made_again(options: PrepareOptions, tmp_path: Path, capsys):
    manifest = prepare_source(options)
    before = {path: path.stat().st_mtime_ns for path in options.output.rglob("*")}
    capsys.readouterr()
    assert prepare_source(replace(options, workers=1)) == manifest == load_manifest(options.output)
    assert "is there already, of the same inputs and options" in capsys.readouterr().out
    assert list(verify_files(options.output, manifest)) == []
    told = f"{options.output}: holds a source of other settings (seed, deduplicated), which is not"
    assert refusal(replace(options, seed=5, deduplicate=True)).startswith(told)
    assert {path: path.stat().st_mtime_ns for path in options.output.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


@pytest.mark.parametrize("place", ["out", "out.preparing"])
def test_what_is_someone_elses_stays(place: str, options: PrepareOptions, tmp_path: Path):
    (tmp_path / place).mkdir()
    (tmp_path / place / "mine").write_text("precious")
    assert refusal(options).startswith(f"{tmp_path / place}: holds something else")
    assert all_bytes(tmp_path / place) == {"mine": b"precious"}
    assert len(list(tmp_path.iterdir())) == 2


def test_copies_are_counted_and_the_first_is_kept_where_asked(
    options: PrepareOptions, tmp_path: Path
):
    lines = [("one", "MIT"), ("two", "BSD"), ("one", "GPL"), ("one", "MIT"), (" ", "MIT")]
    rows = [
        {"text": text, "licence": licence} for text, licence in [*lines, ("", None), ("x", None)]
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = replace(options, licence_field="licence", validation_share=0.3)
    for unit_bytes in (1, 10**6):
        output = tmp_path / f"all{unit_bytes}"
        manifest = prepare_source(replace(options, output=output), unit_bytes)
        assert (manifest["duplicates"], manifest["empty"], manifest["deduplicated"]) == (
            2,
            2,
            False,
        )
        assert manifest["licences"] == {"BSD": 1, "GPL": 1, "MIT": 2, "unknown": 1}
        output = tmp_path / f"once{unit_bytes}"
        manifest = prepare_source(replace(options, output=output, deduplicate=True), unit_bytes)
        assert (manifest["duplicates"], manifest["empty"]) == (2, 2)
        assert manifest["licences"] == {"BSD": 1, "MIT": 1, "unknown": 1}
        assert sum(split["documents"] for split in manifest["splits"].values()) == 3


def drawn(sizes: np.ndarray, texts: np.ndarray, seed: int) -> np.ndarray:
    """Return records of documents: a text's hash is drawn, its copies share it."""
    hashes = np.random.default_rng(seed).integers(0, 2**63, (texts.max() + 1, 2), dtype=np.uint64)
    records = np.zeros(len(sizes), dtype=DOCUMENT)
    records["hash_high"], records["hash_low"] = hashes[texts].T
    records["num_bytes"] = sizes
    return records


@pytest.mark.parametrize("share", [0.005, 0.02, 0.5])
@pytest.mark.parametrize("deduplicate", [False, True])
def test_the_held_out_share_is_met_and_copies_stay_together(share: float, deduplicate: bool):
    for seed in range(20):
        generator = np.random.default_rng(seed)
        texts = generator.integers(0, 3000, 4000)
        sizes = generator.lognormal(7, 1, 3000).astype(int)[texts]
        found = select(drawn(sizes, texts, seed), share, deduplicate)
        kept, held_out = texts[found.is_kept], texts[found.is_held_out]
        assert set(kept) == set(texts)
        assert found.num_duplicates == 4000 - len(set(texts))
        assert len(kept) == (len(set(texts)) if deduplicate else 4000)
        assert set(held_out).isdisjoint(texts[found.is_kept & ~found.is_held_out])
        held_bytes = sizes[found.is_held_out].sum() / sizes[found.is_kept].sum()
        assert held_bytes == pytest.approx(share, rel=0.35 if share < 0.01 else 0.1)
        first = [int(np.flatnonzero(texts == text)[0]) for text in set(texts.tolist())]
        assert found.is_kept[first].all()


def test_a_few_documents_are_split_too():
    for seed in range(10):
        for sizes in ([10, 10], [1, 10**9], [10**9, 1], [5, 5, 700]):
            held_out = select(drawn(np.array(sizes), np.arange(len(sizes)), seed), 0.005, False)[1]
            assert held_out.sum() == 1
            assert sizes[int(held_out.argmax())] == min(sizes)
    assert not select(drawn(np.array([3]), np.array([0]), 0), 0.5, False).is_held_out.any()
    assert not select(drawn(np.array([3, 3]), np.array([0, 0]), 0), 0.5, False).is_held_out.any()
    assert not select(drawn(np.array([3, 3]), np.array([0, 1]), 0), 0.0, False).is_held_out.any()


def test_nothing_held_out_is_an_empty_split(options: PrepareOptions):
    manifest = prepare_source(replace(options, validation_share=0.0))
    assert manifest["splits"]["validation"] == {"documents": 0, "tokens": 0, "bytes": 0}
    assert documents(options.output / "validation") == []
    assert len(documents(options.output / "train")) == 200


def test_bad_lines_are_put_aside_up_to_the_limit(options: PrepareOptions, tmp_path: Path, capsys):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}) for text in TEXTS]
    bad = {3: "{", 50: "[]", 51: '{"body": 1}', 120: "nonsense " * 50, 121: "7", 122: "8", 190: "9"}
    for number, line in bad.items():
        lines[number - 1] = line
    path.write_text("\n".join(lines))
    told = refusal(replace(options, max_bad_lines=6))
    aside = tmp_path / "out.preparing" / "bad_lines.jsonl"
    assert told == (
        f"7 bad lines, over the limit of 6; the first: {path}, line 3: broken JSON (Expecting "
        "property name enclosed in double quotes at column 2); all in "
        f"{aside}; the work is kept"
    )
    capsys.readouterr()
    manifest = prepare_source(replace(options, max_bad_lines=7), unit_bytes=2000)
    printed = capsys.readouterr().out
    assert re.findall(r"put aside: .*a\.jsonl, line (\d+)", printed) == [
        "3",
        "50",
        "51",
        "120",
        "121",
    ]
    assert "put aside: 7 lines in all, listed in bad_lines.jsonl" in printed
    assert "kept from an earlier start" in printed
    assert manifest["bad_lines"] == 7
    assert sum(split["documents"] for split in manifest["splits"].values()) == 193
    written = [json.loads(line) for line in (options.output / "bad_lines.jsonl").open()]
    assert {line["line"]: line["excerpt"] for line in written} == {n: bad[n][:200] for n in bad}
    assert {line["file"] for line in written} == {str(path)}
    assert "bad_lines.jsonl" in manifest["files"]


def test_a_wrong_field_stops_at_the_limit_and_names_those_there_are(options: PrepareOptions):
    told = refusal(replace(options, text_field="body"))
    assert "over the limit of 100; the first: " in told
    assert "line 1: no field 'body'; its fields are text, licence; all in" in told


def test_inputs_without_a_document_are_refused(options: PrepareOptions, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"body": 1}\n')
    told = refusal(options)
    assert told.startswith("the inputs have no documents, 1 empty ones and 1 bad lines; the first ")
    assert "line 2: no field 'text'; its fields are body" in told
    assert not options.output.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"validation_share": -0.1}, "the validation share is -0.1; 0 to 0.5 is allowed"),
        ({"validation_share": 0.6}, "the validation share is 0.6; 0 to 0.5 is allowed"),
        ({"validation_share": float("nan")}, "the validation share is nan; 0 to 0.5 is allowed"),
        ({"seed": -1}, "seed is -1; at least 0 is needed"),
        ({"workers": -1}, "workers is -1; at least 0 is needed"),
        ({"max_bad_lines": -1}, "max_bad_lines is -1; at least 0 is needed"),
        ({"text_field": ""}, "the text field has no name; the field with the document is needed"),
        ({"format": "csv"}, "unknown format 'csv'; one of auto, jsonl, parquet, arrow, text, hug"),
        ({"inputs": ("nowhere.jsonl",)}, "nowhere.jsonl: no such file or folder"),
    ],
)
def test_options_are_checked_before_anything_is_written(
    changes: dict, told: str, options: PrepareOptions, tmp_path: Path
):
    assert refusal(replace(options, **changes)).startswith(told)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_tokenizer_that_changed_or_is_missing_is_told(options: PrepareOptions, tmp_path: Path):
    told = refusal(replace(options, tokenizer=tmp_path))
    assert (
        told
        == f"{tmp_path / 'tokenizer.json'}: no such file; a tokenizer folder holds tokenizer.json"
    )
    prepare_source(options)
    save_tokenizer(train_tokenizer(TEXTS, 270), tmp_path / "new")
    told = refusal(replace(options, tokenizer=tmp_path / "new"))
    assert "holds a source of other settings (tokenizer), which is not replaced" in told


def test_inputs_of_the_same_size_are_told_apart_by_their_content(
    options: PrepareOptions, tmp_path: Path
):
    prepare_source(options)
    path = tmp_path / "a.jsonl"
    path.write_text(path.read_text().replace("the cat 7 ", "the dog 7 "))
    assert "holds a source of other settings (inputs), which is not replaced" in refusal(options)


def test_a_damaged_source_is_told_and_not_replaced(options: PrepareOptions):
    prepare_source(options)
    file = options.output / "train" / "tokens.npy"
    file.write_bytes(file.read_bytes()[:-1])
    assert ", shortened since preparation; the manifest says " in refusal(options)


def test_an_id_outside_of_the_vocabulary_is_told(options: PrepareOptions, monkeypatch):
    def of_fewer_entries(folder: Path):
        return load_tokenizer(folder)._replace(vocab_size=100)

    tokenize_units._tokenizer.cache_clear()
    monkeypatch.setattr(tokenize_units, "load_tokenizer", of_fewer_entries)
    told = refusal(options)
    tokenize_units._tokenizer.cache_clear()
    assert re.search(r"gives the id \d+ in .*a\.jsonl, outside of its vocabulary of 100 ent", told)


def test_a_tokenizer_that_fails_on_a_text_is_told(options: PrepareOptions, tmp_path: Path):
    words = models.WordLevel({"the": 0, END_OF_TEXT: 1}, unk_token="[UNK]")
    Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    told = refusal(replace(options, tokenizer=tmp_path))
    assert told.startswith(f"{tmp_path / 'tokenizer.json'}: a text cannot be tokenized with it (")
    assert "Missing [UNK]" in told


def test_inputs_that_change_meanwhile_are_told(
    options: PrepareOptions, tmp_path: Path, monkeypatch
):
    def change(*arguments):
        (tmp_path / "a.jsonl").write_text('{"text": "another"}\n')
        return iter(())

    monkeypatch.setattr("titan_motif.components.preparation.prepare.tokenize_in_parallel", change)
    assert refusal(options) == f"{tmp_path / 'a.jsonl'}: changed while it was read; start again"


def test_a_worker_that_dies_is_told_and_the_rest_kept(options: PrepareOptions, tmp_path: Path):
    path = write_lines(tmp_path / "b.jsonl", [f"{n} {TEXTS[n % 200]}" for n in range(12_000)])
    options = replace(options, inputs=(str(path),), workers=1)
    units = tmp_path / "out.preparing" / "units"

    def kill_a_worker():
        while len(list(units.glob("*.json"))) < 2:
            time.sleep(0.005)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(ChildProcessError, match=r"^a worker process died .*the units done are kep"):
        prepare_source(options, unit_bytes=20_000)
    killer.join()
    assert len(list(units.glob("*.json"))) >= 2
    manifest = prepare_source(replace(options, workers=0), unit_bytes=20_000)
    assert sum(split["documents"] for split in manifest["splits"].values()) == 12_000
