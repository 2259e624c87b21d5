"""`perplexity`: how well held-out documents of a prepared data set are predicted, by group.

Each document stands alone, after the beginning token, in windows that overlap by one token; its
end token is not predicted. Validation while training reads documents one after the other: its
figures are near these, not the same. Bits per byte compare models of different tokenizers.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from titan_motif.components.curriculum.sources import TokenFile
from titan_motif.components.foreign_files import inside, read_json
from titan_motif.components.preparation.manifest import MANIFEST, tokenizer_sha256
from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.config import JobConfig
from titan_motif.curriculum import sources_of
from titan_motif.evaluation.local_tasks.setting import Setting, Task, in_memory

SPLIT = "validation"


def tasks(setting: Setting) -> list[Task]:
    """Return a task for each group of the data, `perplexity_GROUP`.

    Raises: ValueError, one line, if there are no data, or they cannot be read
    """
    check_documents(setting.groups, setting.tokenizer_folder)
    return [_task(group, folders, setting) for group, folders in setting.groups.items()]


def _task(group: str, folders: Sequence[Path], setting: Setting) -> Task:
    rows = [row for folder in folders for row in documents(folder, setting.tokenizer_folder)]
    return {
        "task": f"perplexity_{group}",
        "custom_dataset": in_memory(test=rows),
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": _nothing,
        "doc_to_target": _text,
        "process_results": measure,
        "metric_list": [
            {"metric": "bits_per_byte", "aggregation": bits, "higher_is_better": False},
            {"metric": "nats_per_token", "aggregation": nats, "higher_is_better": False},
        ],
        "metadata": {"version": 1},
    }


def check_documents(groups: Mapping[str, Sequence[Path]], tokenizer_folder: Path) -> None:
    """Raise ValueError, one line, if there are no held-out splits, or one cannot be read.

    Their texts are not read: it takes no time, and can be told before a model is loaded.
    """
    if not groups:
        raise ValueError("perplexity needs held-out documents, and no run is known that has some")
    for folders in groups.values():
        for folder in folders:
            _opened(folder, tokenizer_folder)


def documents(folder: Path, tokenizer_folder: Path) -> list[dict[str, Any]]:
    """Return the texts of a held-out split, each with its numbers of bytes and tokens.

    Raises: ValueError, one line, if the split is not there, is of another tokenizer, or does not
            tell its documents apart
    """
    file = _opened(folder, tokenizer_folder)
    loaded = load_tokenizer(tokenizer_folder)
    if file.sampled_range()[1] >= loaded.vocab_size:
        raise ValueError(f"{file.path}: has ids that the tokenizer of {tokenizer_folder} has not")
    assert file.offsets is not None
    rows = []
    for begin, end in zip(file.offsets[:-1].tolist(), file.offsets[1:].tolist(), strict=True):
        tokens = file.tokens[begin:end].tolist()
        if tokens[-1] == loaded.end_id:
            tokens.pop()
        text = loaded.tokenizer.decode(tokens, skip_special_tokens=False)
        if text:
            rows.append({"text": text, "bytes": len(text.encode()), "tokens": len(tokens)})
    if not rows:
        raise ValueError(f"{file.path}: holds no text")
    return rows


def _opened(folder: Path, tokenizer_folder: Path) -> TokenFile:
    """Return a held-out split of documents; its tokens are not read."""
    file = TokenFile(folder)
    if file.is_packed:
        raise ValueError(f"{file.path}: packed conversations; perplexity needs documents")
    if file.offsets is None:
        raise ValueError(
            f"{file.path.with_name('document_offsets.npy')}: no such file; perplexity is of "
            "documents"
        )
    _check_tokenizer(folder, tokenizer_folder)
    return file


def _check_tokenizer(folder: Path, tokenizer_folder: Path) -> None:
    """Raise ValueError if it is known that a split was made with another tokenizer."""
    for above in (folder.parent, folder.parent.parent):
        beside = above / "tokenizer"
        needed = None
        if (beside / "tokenizer.json").is_file():
            needed = tokenizer_sha256(beside)
        elif (above / MANIFEST).is_file():
            needed = _recorded_sha256(above)
        if needed is not None and needed != tokenizer_sha256(tokenizer_folder):
            raise ValueError(
                f"{folder}: was prepared with another tokenizer than that of {tokenizer_folder}"
            )


@functools.cache
def _recorded_sha256(source: Path) -> str | None:
    try:
        manifest = read_json(inside(source, MANIFEST))
    except ValueError as error:
        raise ValueError(f"{source / MANIFEST}: cannot be read as JSON ({error})") from None
    tokenizer = manifest.get("tokenizer") if isinstance(manifest, dict) else None
    return tokenizer.get("sha256") if isinstance(tokenizer, dict) else None


def data_groups(folder: Path) -> dict[str, list[Path]]:
    """Return the held-out splits in a folder: a source's own, or those of the sources in it.

    Raises: ValueError, one line, if there are none
    """
    if (folder / SPLIT / "tokens.npy").is_file():
        return {folder.name: [folder / SPLIT]}
    splits = sorted(file.parent for file in folder.glob(f"*/{SPLIT}/tokens.npy"))
    found = {split.parent.name: [split] for split in splits}
    if not found:
        raise ValueError(
            f"--data is {folder}; neither it nor a folder in it holds {SPLIT}/tokens.npy"
        )
    return found


def held_out_splits(config: JobConfig) -> dict[str, list[Path]]:
    """Return the folders of each group's held-out splits, of a job's data."""
    groups: dict[str, list[Path]] = {}
    for source in sources_of(config):
        groups.setdefault(source.group, []).append(source.folder / SPLIT)
    return groups


def measure(document: Mapping[str, Any], results: Sequence[float]) -> dict[str, Any]:
    """Return (log-likelihood, bytes) and (log-likelihood, tokens) of a document."""
    (log_likelihood,) = results
    return {
        "bits_per_byte": (log_likelihood, document["bytes"]),
        "nats_per_token": (log_likelihood, document["tokens"]),
    }


def nats(items: Sequence[tuple[float, int]]) -> float:
    """Return minus the sum of the log-likelihoods over the sum of the counts."""
    return -sum(likelihood for likelihood, _ in items) / sum(count for _, count in items)


def bits(items: Sequence[tuple[float, int]]) -> float:
    """Return the same in bits."""
    return nats(items) / math.log(2)


def _nothing(document: Mapping[str, Any]) -> str:
    return ""


def _text(document: Mapping[str, Any]) -> str:
    return document["text"]
