"""The byte-level BPE: any text, any size, special tokens, a chat template, and what is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from titan_motif.components.preparation.tokenizer import (
    END_OF_TEXT,
    MIN_VOCAB_SIZE,
    SPECIAL_TOKENS,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)


def test_tokenizer_keeps_any_text_and_counts_its_bytes(tiny_tokenizer: Path):
    tokenizer = load_tokenizer(tiny_tokenizer).tokenizer
    token_bytes = np.load(tiny_tokenizer / "token_bytes.npy")
    for text in ("the cat", "naïve café 한국어 🙂", "\ttabs\r\n  spaces ", "def f(x):\n    x\n"):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert token_bytes[ids].sum() == len(text.encode())
    assert token_bytes[: len(SPECIAL_TOKENS)].sum() == 0


def test_tokenizer_loads_in_transformers_and_torchtitan(tiny_tokenizer: Path):
    import titan_motif.device  # noqa: F401

    # isort: split
    from torchtitan.components.tokenizer import HuggingFaceTokenizer
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(tiny_tokenizer))
    ours = HuggingFaceTokenizer(str(tiny_tokenizer))
    text = "Question: What is 2 + 2?<|endoftext|>"
    assert theirs.encode(text) == ours.encode(text)
    assert ours.eos_id == theirs.eos_token_id == ours.encode(text)[-1]


def test_sizes_from_the_bytes_to_the_largest(tmp_path: Path):
    tokenizer = train_tokenizer(["aaaa bbbb " * 9], MIN_VOCAB_SIZE)
    assert tokenizer.get_vocab_size() == MIN_VOCAB_SIZE == 263
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))
    with pytest.raises(ValueError, match="a vocabulary of 262 is too small; at least 263 are"):
        train_tokenizer(["text"], 262)
    with pytest.raises(ValueError, match="yields 269 tokens, not 219520; ask for a smaller"):
        train_tokenizer(["aaaa bbbb " * 9], 219_520)


def test_the_vocabulary_of_the_report_takes_32_bits(tmp_path: Path):
    vocabulary = {END_OF_TEXT: 0} | {f"token {index}": index for index in range(1, 219_520)}
    save = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    save.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.end_id, loaded.dtype) == (219_520, 0, np.uint32)


def test_the_chat_template_marks_roles_and_ends(tiny_tokenizer: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_tokenizer))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "the cat?"},
        {"role": "assistant", "content": "sat"},
        {"role": "tool", "content": "mat"},
    ]
    text = "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in messages)
    apply = tokenizer.apply_chat_template
    assert apply(messages, tokenize=False) == text
    asked = apply(messages, tokenize=False, add_generation_prompt=True)
    assert asked == text + "<|assistant|>\n"
    ids = tokenizer(text)["input_ids"]
    assert [x for x in ids if x < 7] == [2, 6, 3, 6, 4, 6, 5, 6]
    with pytest.raises(Exception, match="no role critic; system, user, assistant or tool"):
        apply([{"role": "critic", "content": ""}], tokenize=False)


def test_documents_are_text_and_nothing_is_added_or_cut(tmp_path: Path):
    tokenizer = train_tokenizer(["the cat sat "], 263)
    plain = tokenizer.encode("the cat").ids
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.tokenizer.encode("the cat").ids == plain
    ids = loaded.tokenizer.encode(f"a{END_OF_TEXT}b").ids
    assert loaded.end_id not in ids
    assert loaded.tokenizer.decode(ids) == f"a{END_OF_TEXT}b"


@pytest.mark.parametrize("written", ["</s>", {"content": "</s>", "lstrip": False}])
def test_the_end_of_text_is_that_of_the_configuration(written, tmp_path: Path):
    vocabulary = {"a": 0, "</s>": 1, END_OF_TEXT: 2}
    Tokenizer(models.WordLevel(vocabulary)).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).end_id == 2
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": written}))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.end_of_text, loaded.end_id, loaded.dtype) == ("</s>", 1, np.uint16)


@pytest.mark.parametrize(
    ("vocabulary", "told"),
    [
        (None, r"no such file; a tokenizer folder holds tokenizer\.json"),
        ({"a": 0, "b": 1}, "no end-of-text token: '<|endoftext|>' is not in the vocabulary; name"),
        ({END_OF_TEXT: 0, "b": 2}, "the token 'b' has the id 2, outside of its vocabulary of 2 en"),
    ],
)
def test_tokenizers_that_do_not_serve_are_refused(vocabulary, told: str, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    if vocabulary is not None:
        Tokenizer(models.WordLevel(vocabulary)).save(str(path))
    told = told.replace("|", r"\|")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {told}") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_damage_is_one_line(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot be read as a tokenizer \(EOF"):
        load_tokenizer(tmp_path)


def write_json(folder: Path, **parts) -> Path:
    """Write a tokenizer of two entries, some of its parts others."""
    content = json.loads(Tokenizer(models.BPE({"a": 0, END_OF_TEXT: 1}, [])).to_str()) | parts
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


PADDING = {
    "strategy": {"Fixed": 3_000_000_000},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "a",
}
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 2}
WORDS = {"type": "WordLevel", "vocab": {"b": 0, END_OF_TEXT: 1}, "unk_token": "[UNK]"}


def test_a_tokenizer_that_fills_texts_takes_no_memory(tmp_path: Path):
    write_json(tmp_path, padding=PADDING, truncation=TRUNCATION)
    program = (
        "import resource, sys\n"
        "from titan_motif.components.preparation.foreign_tokenizer import read_checked\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30,) * 2)\n"  # it would end the process
        "print(len(read_checked(sys.argv[1]).encode('aaaaa').ids))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (0, "5\n"), told.stderr


def test_torchtitans_tokenizer_fills_and_cuts_nothing(tmp_path: Path):
    from titan_motif.plugin import WholeTextTokenizer

    padding = PADDING | {"strategy": {"Fixed": 7}}
    write_json(tmp_path, padding=padding, truncation=TRUNCATION)
    assert WholeTextTokenizer(str(tmp_path)).encode("aaaaa") == [0] * 5
    assert WholeTextTokenizer(str(tmp_path)).encode("a") == [0]


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def framed(num_tokens: int) -> dict:
    single = [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    token = {"id": "a", "ids": [0] * num_tokens, "tokens": ["a"] * num_tokens}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [],
        "special_tokens": {"a": token},
    }


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 7}}, "128 times as lo"),
        ({"normalizer": {"type": "Sequence", "normalizers": [BYTES] * 40}}, "1,099,511,627,776 t"),
        ({"post_processor": framed(1001)}, "1,001 tokens stand around a text; 1,000 are allowed"),
        (
            {"post_processor": {"type": "Sequence", "processors": [framed(400)] * 3}},
            "1,200 tokens stand around a text",
        ),
    ],
)
def test_steps_that_memory_does_not_hold_are_refused(parts: dict, told: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"tokenizer\.json: cannot be read as .*{told}"):
        load_tokenizer(write_json(tmp_path, **parts))


def test_steps_that_tokenizers_have_are_read(tmp_path: Path):
    steps = {"type": "Sequence", "pretokenizers": [BYTES]}
    processors = {"type": "Sequence", "processors": [BYTES, framed(2)]}
    folder = write_json(tmp_path, pre_tokenizer=steps, post_processor=processors)
    assert load_tokenizer(folder).encode("aa") == [0, 0]


def test_a_tokenizer_without_a_token_for_a_word_is_told(tmp_path: Path):
    loaded = load_tokenizer(write_json(tmp_path, model=WORDS))
    assert loaded.encode("b") == [0]
    told = r"tokenizer\.json: a text cannot be tokenized with it \(WordLevel error: Missing \[UNK\]"
    with pytest.raises(ValueError, match=told) as caught:
        loaded.encode("c")
    assert "\n" not in str(caught.value)
