"""`titan-motif generate`: what a trained model makes of a prompt, or of a conversation."""

import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import titan_motif.device as default_device  # before anything of torchtitan

# isort: split
from titan_motif.components.foreign_files import parse_json, printable, read_text
from titan_motif.components.preparation.tokenizer import DocumentTokenizer, load_tokenizer
from titan_motif.components.sft.conversations import Message
from titan_motif.evaluation.chat import ChatPrompts, check_text
from titan_motif.evaluation.continuation import Continuation, Speed, continue_prompts
from titan_motif.evaluation.loading import (
    check_vocabulary,
    dtype_named,
    load_model,
    newest_step,
    tokenizer_folder_of,
    usable_device,
)
from titan_motif.evaluation.next_token import Sampling
from titan_motif.evaluation.text_stream import TextStream
from titan_motif.model import Motif2Model

MAX_PROMPTS_BYTES = 100_000_000
"""Of a file of prompts."""


@dataclass
class Options:
    """Continue prompts with a model, from a step of a run or an exported directory.

    One prompt's text is printed while it comes; what it took goes to the standard error.

    Example: titan-motif generate outputs/debug/checkpoint/step-385 --prompt "def main(" --top-p 0.9
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A DCP step, a run's checkpoint folder (its newest whole step), or a directory of
    safetensors."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text to be continued; given several times, several."""
    prompts_file: Path | None = None
    """Prompts, one a line: texts or, in a file that ends in .jsonl, {"prompt": "..."} objects."""
    chat: bool = False
    """Take each prompt as a user's turn, in the tokenizer's chat template. Without a prompt, hold a
    conversation whose turns are the lines of the standard input."""
    system: str | None = None
    """What a conversation begins with."""
    max_new_tokens: int = 256
    """Most tokens of a continuation."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=Sampling
    )
    num_samples: int = 1
    """Continuations of each prompt."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End before this text; given several times, before the first of them. The tokenizer's
    end-of-text token always ends a text, and its end of a turn a chat's."""
    batch_size: int = 8
    """Continuations that run at once; more memory, no other tokens."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, where neither the checkpoint nor its run has it."""
    config: Path | None = None
    """The model's job, where its folder does not tell its network."""
    device: str = default_device.device_type
    """Where to run: cpu, cuda, cuda:1."""
    dtype: Literal["auto", "same", "bfloat16", "float32", "float64"] = "auto"
    """Of weights and arithmetic; 'auto' is float32 on a CPU and bfloat16 elsewhere, 'same' that of
    the files. lambda's vectors and PolyNorm's coefficients stay in float32 at least."""
    json: Path | None = None
    """Write texts, tokens and speed to this file."""


def main(options: Options) -> None:
    """Continue prompts, or hold a conversation."""
    options.sampling.check()
    _check(options)
    options = dataclasses.replace(options, checkpoint=newest_step(options.checkpoint))
    folder = tokenizer_folder_of(options.checkpoint, options.tokenizer)
    tokenizer = load_tokenizer(folder)
    texts = _texts(options)
    prompter = _Prompter(options, folder, tokenizer)
    prompts = [prompter.tokens(text) for text in texts]
    device = usable_device(options.device)
    model = load_model(
        options.checkpoint, options.config, device, dtype_named(options.dtype, device)
    )
    check_vocabulary(tokenizer.vocab_size, folder, model.model_args)
    generator = _Generator(options, model, tokenizer, prompter.stop_tokens)
    entries = generator.continue_all(texts, prompts) if texts else _converse(prompter, generator)
    found: list[dict[str, Any]] = []
    try:
        for entry in entries:
            found.append(entry)
    except BaseException:
        if found:  # what there is until then took its time, too
            _write(options, model, generator, found)
        raise
    print(f"generate: {generator.speed}", file=sys.stderr)
    _write(options, model, generator, found)


def _check(options: Options) -> None:
    """Raise ValueError for options that do not go together, before anything is read."""
    if options.prompt and options.prompts_file is not None:
        raise ValueError("--prompt and --prompts-file are both given; one of them is needed")
    if not (options.prompt or options.prompts_file or options.chat):
        raise ValueError("there is no prompt; --prompt, --prompts-file or --chat is needed")
    if options.system is not None and not options.chat:
        raise ValueError("--system is given; it needs --chat")
    is_conversation = options.chat and not (options.prompt or options.prompts_file)
    if is_conversation and options.num_samples != 1:
        raise ValueError(f"--num-samples is {options.num_samples}; a conversation has 1")
    for name in ("max_new_tokens", "num_samples", "batch_size"):
        if getattr(options, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {getattr(options, name)}; at least 1 is needed")
    if "" in options.stop:
        raise ValueError("--stop is empty; a text is needed")
    for name in ("prompt", "stop"):
        for text in getattr(options, name):
            check_text(text, f"--{name}")
    check_text(options.system or "", "--system")


def _texts(options: Options) -> list[str]:
    if options.prompts_file is None:
        return list(options.prompt)
    file = options.prompts_file
    try:
        content = read_text(file, MAX_PROMPTS_BYTES).removeprefix("\ufeff")
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read as a file ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 ({error})") from None
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read as a file ({error})") from None
    # Newlines alone: what else str.splitlines takes for one may stand in a text.
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    texts = [line for line in lines if line.strip()]
    if file.suffix == ".jsonl":
        texts = [_prompt_of(file, n, x) for n, x in enumerate(lines, start=1) if x.strip()]
    if not texts:
        raise ValueError(f"{file}: holds no prompts")
    return texts


def _prompt_of(file: Path, number: int, line: str) -> str:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{file}: line {number} is no JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise ValueError(f'{file}: line {number}: an object with a text "prompt" is needed')
    check_text(found["prompt"], f"{file}: line {number}: the prompt")
    return found["prompt"]


class _Prompter:
    """Makes tokens of prompts, plain or as turns of a conversation."""

    def __init__(self, options: Options, folder: Path, tokenizer: DocumentTokenizer) -> None:
        self.tokenizer = tokenizer
        self.chat = ChatPrompts(folder) if options.chat else None
        self.stop_tokens = {tokenizer.end_id}
        if self.chat is not None:
            ends = self.chat.end_of_turn()
            self.stop_tokens |= set() if ends is None else {ends}
        self.opening: list[Message] = []
        if options.system is not None:
            self.opening.append({"role": "system", "content": options.system})

    def tokens(self, text: str, before: Sequence[Message] = ()) -> list[int]:
        """Return a prompt's tokens; of a chat, those of all turns `before` it too."""
        if self.chat is None:
            return self.tokenizer.encode(text)
        turn: Message = {"role": "user", "content": text}
        return self.chat.tokens([*self.opening, *before, turn])


class _Generator:
    """Continues batches of prompts, and prints what comes."""

    def __init__(
        self,
        options: Options,
        model: Motif2Model,
        tokenizer: DocumentTokenizer,
        stop_tokens: set[int],
    ) -> None:
        self.options, self.model, self.tokenizer = options, model, tokenizer
        self.stop_tokens, self.speed = stop_tokens, Speed()

    def continue_all(
        self, texts: Sequence[str], prompts: Sequence[list[int]]
    ) -> Iterator[dict[str, Any]]:
        """Yield what there is to tell of every prompt, and print it in their order."""
        samples, batch_size = self.options.num_samples, self.options.batch_size
        if len(prompts) * samples == 1:
            yield _entry(texts[0], self.run(prompts, is_streaming=True))
            return
        at_once = max(batch_size // samples, 1)
        for begin in range(0, len(prompts), at_once):
            some = prompts[begin : begin + at_once]
            rows = []
            for first in range(0, samples, batch_size):  # more than once for one prompt alone
                numbers = range(first, min(first + batch_size, samples))
                rows += self.run(some, numbers)
            for number in range(len(some)):
                here = rows[number * samples : (number + 1) * samples]
                for continuation, text in here:
                    told = f", sample {continuation.sample + 1}" if samples > 1 else ""
                    print(f"--- prompt {begin + number + 1}{told}\n{_shown(text)}", flush=True)
                yield _entry(texts[begin + number], here)

    def run(
        self,
        prompts: Sequence[list[int]],
        samples: Sequence[int] = (0,),
        is_streaming: bool = False,
    ) -> list[tuple[Continuation, str]]:
        """Return the continuations and texts of one batch, of each prompt the samples named."""
        options = self.options
        num_rows = len(prompts) * len(samples)
        streams = [TextStream(self.tokenizer.tokenizer, options.stop) for _ in range(num_rows)]

        def take(row: int, token: int) -> bool:
            new = streams[row].push(token)
            if is_streaming:
                print(_shown(new), end="", flush=True)
            return streams[row].is_stopped

        rows = continue_prompts(
            self.model,
            prompts,
            options.sampling,
            options.max_new_tokens,
            stop_tokens=self.stop_tokens,
            samples=samples,
            on_token=take,
            speed=self.speed,
        )
        rest = [stream.finish() for stream in streams]
        if is_streaming:
            print(_shown(rest[0]), flush=True)
        return [(row, stream.text) for row, stream in zip(rows, streams, strict=True)]


def _shown(text: str) -> str:
    """Return a model's text as it is, on a terminal without what would steer it."""
    return printable(text, "\n\t") if sys.stdout.isatty() else text


def _converse(prompter: _Prompter, generator: _Generator) -> Iterator[dict[str, Any]]:
    """Answer the lines of the standard input, each after all that was said before.

    A turn that cannot be answered is left out, and Ctrl-C ends the conversation.

    Raises: ValueError at its end, if turns were left out
    """
    said: list[Message] = []
    num_left_out = 0
    try:
        for line in _lines():
            try:
                rows = generator.run([prompter.tokens(line, said)], is_streaming=True)
            except ValueError as error:
                print(f"generate: this turn is left out: {error}", file=sys.stderr, flush=True)
                num_left_out += 1
                continue
            said.append({"role": "user", "content": line})
            said.append({"role": "assistant", "content": rows[0][1]})
            yield _entry(line, rows)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    if num_left_out:
        raise ValueError(f"turns that could not be answered were left out: {num_left_out}")


def _lines() -> Iterator[str]:
    """Yield the lines of the standard input that are not empty, asking for them on a terminal."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # a line that is no text is told as a turn's fault
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


_ENDINGS = {"length": "length", "stop_token": "stop_token", "caller": "stop_string"}


def _entry(prompt: str, rows: Sequence[tuple[Continuation, str]]) -> dict[str, Any]:
    samples = [
        {"text": text, "tokens": row.tokens, "ended_by": _ENDINGS[row.ended_by]}
        for row, text in rows
    ]
    return {"prompt": prompt, "prompt_tokens": len(rows[0][0].prompt), "samples": samples}


def _write(
    options: Options, model: Motif2Model, generator: _Generator, found: list[dict[str, Any]]
) -> None:
    """Write texts, tokens and speed, if that is wanted."""
    if options.json is None:
        return
    speed, weight = generator.speed, model.norm.weight
    figures = {
        "checkpoint": str(options.checkpoint),
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "sampling": dataclasses.asdict(options.sampling),
        **dataclasses.asdict(speed),
        "tokens_per_second": speed.new_tokens / max(speed.new_seconds, 1e-9),
        "prompts": found,
    }
    options.json.write_text(json.dumps(figures, indent=1) + "\n")
