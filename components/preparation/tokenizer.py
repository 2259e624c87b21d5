"""A byte-level BPE with special tokens and a chat template, as Hugging Face's tools expect it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from titan_motif.components.preparation.foreign_tokenizer import (
    SETTINGS,
    TOKENIZER,
    read_checked,
    telling,
    tokenizer_settings,
)

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|end|>",
)
"""The end of a document, padding, and what the chat template needs."""

CHAT_TEMPLATE = (
    "{% if tools %}"
    "{{ '<|system|>\\nTools:' }}"
    "{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}"
    "{{ '<|end|>\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant', 'tool') %}"
    "{{ raise_exception('no role ' + message['role'] + '; system, user, assistant or tool') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}"
    "{% if message['reasoning_content'] %}"
    "{{ '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n' }}"
    "{% endif %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or () %}"
    "{{ '<tool_call>' + call['function'] | tojson + '</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|end|>' }}"
    "{% endgeneration %}"
    "{% else %}"
    "{{ message['content'] + '<|end|>' }}"
    "{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""ChatML's form, with one token for a role's beginning in place of its name in letters. What the
assistant writes, the end of its turn included, stands in `generation`: that is what is learnt."""

MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, show_progress: bool = False
) -> Tokenizer:
    """Train a tokenizer of exactly vocab_size entries, special tokens first.

    Raises: ValueError if the text does not hold as many different pieces, or if not every byte and
            special token has room
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small; at least {MIN_VOCAB_SIZE} are needed: "
            f"256 bytes and {len(SPECIAL_TOKENS)} special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the corpus yields {tokenizer.get_vocab_size()} tokens, not {vocab_size}; "
            f"ask for a smaller vocabulary"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and token_bytes.npy."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": "<|pad|>",
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32_768,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    np.save(folder / "token_bytes.npy", token_bytes(tokenizer))


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return how many bytes of text each token stands for; special tokens stand for none.

    Byte-level BPE writes each byte as one character, so a token's length is its count of bytes.
    """
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(len(vocabulary), dtype=np.int64)
    for token, index in vocabulary.items():
        lengths[index] = 0 if token in SPECIAL_TOKENS else len(token)
    return lengths


class DocumentTokenizer(NamedTuple):
    """A tokenizer as the preparation of documents needs it."""

    tokenizer: Tokenizer
    vocab_size: int
    end_of_text: str
    end_id: int
    file: Path

    @property
    def dtype(self) -> np.dtype:
        """Of the tokens in files: the narrowest that holds the vocabulary."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens, and nothing around them.

        Raises: ValueError, one line, if the tokenizer fails on it
        """
        with telling(self.file):
            return self.tokenizer.encode(text, add_special_tokens=False).ids


def load_tokenizer(folder: str | Path) -> DocumentTokenizer:
    """Load a folder's tokenizer.json so that it encodes text whole, and nothing but text.

    What a tokenizer may add or cut (a beginning token, padding, a maximal length) is off, and the
    name of a special token within a text is text: the end token ends documents and nothing else.
    Raises: ValueError if the tokenizer is missing or damaged, has no end-of-text token, or has an
            id that is not below its number of entries
    """
    path, tokenizer = Path(folder) / TOKENIZER, read_checked(folder)
    tokenizer.encode_special_tokens = True
    vocabulary = tokenizer.get_vocab()
    token, largest = max(vocabulary.items(), key=lambda entry: entry[1], default=("", -1))
    if largest >= len(vocabulary):
        raise ValueError(
            f"{path}: the token {token!r} has the id {largest}, outside of its vocabulary of "
            f"{len(vocabulary)} entries; ids from 0 without a gap are needed"
        )
    end = end_of_text(folder)
    if end not in vocabulary:
        raise ValueError(
            f"{path}: no end-of-text token: {end!r} is not in the vocabulary; name one of "
            'its tokens as "eos_token" in tokenizer_config.json'
        )
    return DocumentTokenizer(tokenizer, len(vocabulary), end, vocabulary[end], path)


def end_of_text(folder: str | Path) -> str:
    """Return the eos_token of a folder's tokenizer_config.json, ours where there is none.

    Raises: ValueError if the file is damaged
    """
    token = tokenizer_settings(folder).get("eos_token") or END_OF_TEXT
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"{Path(folder) / SETTINGS}: cannot be read (eos_token is no text)")
    return text
