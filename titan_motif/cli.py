"""`titan-motif COMMAND`: one module for each command, imported when it is asked for.

A command's module has `Options`, a dataclass whose docstrings are the help, and `main(options)`,
which raises ValueError or OSError where the user is to be told something. The options `json` and
`png` are files that it writes.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from titan_motif.components.foreign_files import is_panic, printable

COMMANDS = {
    "plan": ("titan_motif.plan", "N GPUs: memory of each, Parallel Muon's loads, bytes, time"),
    "grow": ("titan_motif.growth.command", "a larger model of the same function"),
    "export": ("titan_motif.interchange.export", "a step as transformers loads it"),
    "import": ("titan_motif.interchange.importing", "safetensors as a step to begin from"),
    "average": ("titan_motif.interchange.average", "the mean of the weights of several steps"),
    "generate": ("titan_motif.evaluation.generate", "what a model makes of a prompt, or a chat"),
    "evaluate": ("titan_motif.evaluation.evaluate", "benchmarks, by lm-evaluation-harness"),
    "report": ("titan_motif.report.command", "a page of a run: curves, samples, settings"),
    "seal": ("titan_motif.seal_command", "seal a checkpoint that something else wrote"),
    "data preview": ("titan_motif.data.preview", "mixture, length, batch, rate over a run"),
    "data trace": ("titan_motif.data.trace", "which documents the sequences of a step hold"),
    "bench loader": ("titan_motif.bench.loader", "tokens a second from a prepared source"),
    "data prepare": ("titan_motif.data.prepare", "documents to the tokens that a run reads"),
    "data train-tokenizer": ("titan_motif.data.train_tokenizer", "a byte-level BPE of any size"),
    "data inspect": ("titan_motif.data.inspect", "what a prepared source holds"),
    "data prune": ("titan_motif.data.prune", "conversations without those that add little"),
    "bench poly-norm": ("titan_motif.bench.poly_norm", "PolyNorm beside torch.compile and Liger"),
    "bench attention": (
        "titan_motif.bench.attention",
        "grouped differential attention beside SDPA",
    ),
    "bench loss": (
        "titan_motif.bench.loss",
        "the loss over a large vocabulary beside torchtitan's and Liger's",
    ),
    "bench muon": ("titan_motif.bench.muon", "a step of Parallel beside Distributed Muon"),
    "bench rms-norm": ("titan_motif.bench.rms_norm", "RMSNorm beside torch.compile and Liger"),
    "bench newton-schulz": (
        "titan_motif.bench.newton_schulz",
        "orthogonalising matrices beside torch.optim.Muon and Dion",
    ),
    "bench block": ("titan_motif.bench.block", "what a block's time goes into, plain and in FP8"),
    "bench train": ("titan_motif.bench.train", "whole steps beside torchtitan's Llama-3"),
    "study compile": ("titan_motif.study.compile", "compiling, kernels, FP8, recomputation"),
    "drill": ("titan_motif.drill.command", "faults put into small runs, and what holds"),
    "experiment": (
        "titan_motif.experiments.command",
        "an open question, put to small models",
    ),
}
"""Name -> module, and what it is for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 on success, 1 failed, 2 a wrong command line.

    Where nobody reads the output any more it ends without a word, with 1 as Python and rich do.
    """
    try:
        code = _run(argv)
        sys.stdout.flush()  # Python itself does so after the last word that we have
        return code
    except BrokenPipeError:
        # What is left is of no interest: Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    name = _command(arguments)
    if name is None:
        words = [argument for argument in arguments if argument not in ("-h", "--help")]
        begun_so = [name for name in COMMANDS if f"{name} ".startswith(" ".join([*words, ""]))]
        if begun_so and (words != arguments or not arguments):
            print(_usage(begun_so))
            return 0
        known = ", ".join(COMMANDS)
        print(f"error: no command {' '.join(words)!r}; one of {known} is needed", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[name][0])
    rest = arguments[len(name.split()) :]
    options = tyro.cli(module.Options, args=rest, prog=f"titan-motif {name}")
    try:
        _check_outputs(options)
        module.main(options)
    except (ValueError, OSError, RuntimeError) as error:
        if is_debugging or isinstance(error, BrokenPipeError):
            raise
        kind = f"{type(error).__name__}: " if isinstance(error, RuntimeError) else ""
        first_line = str(error).partition("\n")[0]
        print(f"error: {kind}{printable(first_line)}", file=sys.stderr)
        return 1
    except BaseException as error:
        if is_debugging or not is_panic(error):  # of a library in Rust
            raise
        print(f"error: {printable(str(error).partition(chr(10))[0])}", file=sys.stderr)
        return 1
    return 0


def _check_outputs(options: Any) -> None:
    """Raise ValueError, before any work, if a file that the command will write cannot be."""
    for name in ("json", "png"):
        file = getattr(options, name, None)
        if file is None:
            continue
        if file.is_dir():
            raise ValueError(f"--{name} is {file}; that is a folder, and a file is needed")
        if not file.parent.is_dir():
            raise ValueError(f"--{name} is {file}; the folder {file.parent} does not exist")
        try:
            _check_writable(file)
        except OSError as error:
            raise ValueError(
                f"--{name} is {file}; it cannot be written ({error.strerror})"
            ) from None


def _check_writable(file: Path) -> None:
    """Raise OSError if a file cannot be written, leaving all as it was."""
    try:
        with file.open("x"):
            file.unlink(missing_ok=True)
    except FileExistsError:
        if file.is_file():  # not a pipe, which would wait for its reader
            with file.open("a"):
                pass


def _command(arguments: list[str]) -> str | None:
    words = " ".join(arguments) + " "
    return next((name for name in COMMANDS if words.startswith(name + " ")), None)


def _usage(names: Sequence[str]) -> str:
    lines = [f"  {name:<20} {COMMANDS[name][1]}" for name in names]
    return "\n".join(
        [
            "usage: titan-motif COMMAND [options]; COMMAND --help lists a command's options",
            *lines,
            "  --debug              with any command: show the traceback of an error",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
