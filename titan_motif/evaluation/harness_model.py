"""A Motif-2 model as lm-evaluation-harness asks it (https://github.com/EleutherAI/lm-evaluation-harness).

The harness's own `hf` model under the exported directory is the reference: contexts and
continuations are split and cut as there, which log-likelihoods to 1e-4 confirm.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titan_motif.components.preparation.foreign_tokenizer import telling, tokenizer_settings
from titan_motif.components.preparation.tokenizer import load_tokenizer
from titan_motif.components.sft.conversations import Conversation, Message
from titan_motif.components.sft.template import ChatTemplate
from titan_motif.evaluation.chat import ChatPrompts
from titan_motif.evaluation.continuation import continue_prompts
from titan_motif.evaluation.loading import check_vocabulary
from titan_motif.evaluation.next_token import Sampling
from titan_motif.evaluation.ranks import Ranks
from titan_motif.evaluation.scoring import Pair, progress, score
from titan_motif.evaluation.text_stream import TextStream
from titan_motif.harness.package import (
    Instance,
    TemplateLM,
    get_rolling_token_windows,
    make_disjoint_window,
    normalize_gen_kwargs,
)
from titan_motif.model import Motif2Model

MAX_NEW_TOKENS = 256
"""Of a request that names none; the harness's own default."""

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_IGNORED = {"do_sample", "until", "max_gen_toks"}  # read by themselves


class HarnessModel(TemplateLM):
    """A model that answers the harness's requests.

    Args:
        model:            whole, on one device
        tokenizer_folder: its tokenizer, and its chat template if there is one
        max_length:       tokens that the network is given at most; None is what it is meant for
        is_chat:          whether an assistant's end of a turn ends a text, too
        ranks:            the processes that share the requests
    Raises: ValueError, one line, if the tokenizer cannot be used or max_length is out of range
    """

    def __init__(
        self,
        model: Motif2Model,
        tokenizer_folder: Path,
        batch_size: int = 8,
        max_length: int | None = None,
        is_chat: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.model, self.folder, self.batch_size = model, Path(tokenizer_folder), batch_size
        allowed = model.model_args.max_seq_len
        self.max_length = allowed if max_length is None else max_length
        if not 2 <= self.max_length <= allowed:
            raise ValueError(
                f"--max-length is {max_length}; 2 to {allowed}, what the network is meant for"
            )
        self.ranks = Ranks() if ranks is None else ranks
        self._rank, self._world_size = self.ranks.rank, self.ranks.size
        self._device = model.norm.weight.device
        self._load_tokenizer(is_chat)
        self.num_cut = 0
        """Requests that were longer than max_length, so that their beginning was cut off."""

    def _load_tokenizer(self, is_chat: bool) -> None:
        loaded = load_tokenizer(self.folder)
        check_vocabulary(loaded.vocab_size, self.folder, self.model.model_args)
        self._tokenizer, self._tokenizer_file = loaded.tokenizer, loaded.file
        self._end = loaded.end_id
        # As transformers reads it, and as a chat template needs it.
        self._tokenizer.encode_special_tokens = False
        self._prefix = _beginning(self.folder, self._tokenizer.token_to_id, self._end)
        self._template: ChatTemplate | None = None
        self._stops = {self._end}
        if is_chat:
            chat = ChatPrompts(self.folder)
            self._template, end_of_turn = chat.template, chat.end_of_turn()
            self._stops |= set() if end_of_turn is None else {end_of_turn}

    # ---- tokens

    @property
    def eot_token_id(self) -> int:
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """Return what stands before a text without a context: the beginning token, or the end."""
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        return str(self.folder).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        if add_special_tokens is None:
            prefix = self._tokenizer.decode([self._prefix], skip_special_tokens=False)
            add_special_tokens = not string.startswith(prefix)
        with telling(self._tokenizer_file):
            return self._tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    # ---- conversations

    def apply_chat_template(
        self, chat_history: list[Message], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as text; without the prompt, up to where its last message ends.

        Raises: ValueError, one line, for what the template refuses
        """
        assert self._template is not None  # the harness asks for conversations in a chat alone
        if add_generation_prompt:
            return self._template.prompt(Conversation(chat_history))
        content = str(chat_history[-1]["content"]).rstrip()
        text, _ = self._template.render(Conversation(chat_history))
        before, found, _ = text.rpartition(content)
        return before + found

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self._template.text if self._template is not None and chat_template else ""

    # ---- requests

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return [tuple(one) for one in self._score([(c, r) for _, c, r in requests])]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Return the log-likelihood of whole texts, in windows that overlap by one token."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            ):
                pairs.append(make_disjoint_window(window))
                owners.append(number)
        found = [0.0] * len(requests)
        for number, one in zip(owners, self._score(pairs), strict=True):
            found[number] += one.log_likelihood
        return found

    def _score(self, pairs: list[Pair]) -> list[Any]:
        self.num_cut += sum(len(c) + len(r) > self.max_length + 1 for c, r in pairs)
        label = "scoring" if self.rank == 0 else None
        return score(self.model, pairs, self.batch_size, self.max_length, label)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the texts that follow the contexts, each ended before its first stop text."""
        groups: dict[tuple[str, int], list[int]] = {}
        times: Counter[str] = Counter()
        for number, request in enumerate(requests):
            context, settings = request.args
            key = json.dumps(settings, sort_keys=True, default=str)
            # The same request again is another sample.
            again = times[context + key]
            times[context + key] += 1
            groups.setdefault((key, again), []).append(number)
        batches = []
        for (_, again), numbers in groups.items():
            prompts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
            numbers = sorted(numbers, key=lambda number: -len(prompts[number]))
            for begin in range(0, len(numbers), self.batch_size):
                some = numbers[begin : begin + self.batch_size]
                batches.append((some, [prompts[number] for number in some], again))
        found: dict[int, str] = {}
        shown = progress(batches, "generating") if self.rank == 0 else batches
        for numbers, prompts, again in shown:
            texts = self._generate(prompts, requests[numbers[0]].args[1], again)
            found.update(zip(numbers, texts, strict=True))
        return [found[number] for number in range(len(requests))]

    def generation(self, settings: dict[str, Any]) -> tuple[Sampling, int, list[str]]:
        """Return how texts are sampled, how many tokens they have at most, and where they end.

        Raises: ValueError, one line, for settings that are not known or leave no room for a prompt
        """
        wanted = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
        sampling, max_new_tokens = _sampling(wanted), wanted["max_gen_toks"]
        if max_new_tokens >= self.max_length:
            raise ValueError(
                f"a task asks for {max_new_tokens} new tokens; the network is given at most "
                f"{self.max_length} with the prompt: --max-new-tokens sets fewer, in a job "
                "evaluation.max_new_tokens"
            )
        return sampling, max_new_tokens, wanted["until"]

    def _generate(self, prompts: list[list[int]], settings: dict, seed: int) -> list[str]:
        sampling, max_new_tokens, until = self.generation(settings)
        sampling.seed, room = seed, self.max_length - max_new_tokens
        self.num_cut += sum(len(prompt) > room for prompt in prompts)
        cut = [prompt[-room:] or [self.prefix_token_id] for prompt in prompts]
        streams = [TextStream(self._tokenizer, until) for _ in prompts]

        def take(row: int, token: int) -> bool:
            streams[row].push(token)
            return streams[row].is_stopped

        continue_prompts(
            self.model,
            cut,
            sampling,
            max_new_tokens,
            stop_tokens=self._stops,
            on_token=take,
        )
        for stream in streams:
            stream.finish()
        return [stream.text for stream in streams]

    # ---- ranks

    def all_gather(self, tensor: Tensor) -> Tensor:
        return self.ranks.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return self.ranks.gather_object(obj, dst)

    def barrier(self) -> None:
        self.ranks.barrier()

    @property
    def device(self) -> torch.device:
        return self._device


def _beginning(folder: Path, id_of: Any, end: int) -> int:
    """Return the id of the tokenizer's bos_token, of its end-of-text token if it has none."""
    token = tokenizer_settings(folder).get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    found = id_of(token) if isinstance(token, str) else None
    return end if found is None else found


def _sampling(wanted: dict[str, Any]) -> Sampling:
    """Return how a request is to be sampled; the harness draws nothing unless it is asked to."""
    unknown = sorted(wanted.keys() - {*_SAMPLING, *_IGNORED})
    if unknown:
        raise ValueError(
            f"a task sets {unknown[0]!r} of generation; known are {', '.join(_SAMPLING)}"
        )
    given = {name: wanted[name] for name in _SAMPLING if wanted.get(name) is not None}
    sampling = Sampling(**{"temperature": 0.0, **given})
    if not wanted["do_sample"]:
        sampling.temperature = 0.0
    return sampling
