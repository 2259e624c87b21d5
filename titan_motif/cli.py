"""`titan-motif COMMAND`: one module for each command, imported when it is asked for.

A command's module has `Options`, a dataclass whose docstrings are the help, and `main(options)`,
which raises ValueError or OSError where the user is to be told something.
"""

import importlib
import sys
from collections.abc import Sequence

import tyro

COMMANDS = {
    "bench poly-norm": ("titan_motif.bench.poly_norm", "PolyNorm beside torch.compile and Liger"),
    "bench rms-norm": ("titan_motif.bench.rms_norm", "RMSNorm beside torch.compile and Liger"),
}
"""Name -> module, and what it is for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 on success, 1 failed, 2 a wrong command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    name = _command(arguments)
    if name is None:
        asked = not arguments or arguments[0] in ("-h", "--help")
        print(_usage(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    module = importlib.import_module(COMMANDS[name][0])
    rest = arguments[len(name.split()) :]
    options = tyro.cli(module.Options, args=rest, prog=f"titan-motif {name}")
    try:
        module.main(options)
    except (ValueError, OSError) as error:
        if is_debugging:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _command(arguments: list[str]) -> str | None:
    words = " ".join(arguments) + " "
    return next((name for name in COMMANDS if words.startswith(name + " ")), None)


def _usage() -> str:
    lines = [f"  {name:<18} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: titan-motif COMMAND [options]; COMMAND --help lists a command's options",
            *lines,
            "  --debug            with any command: show the traceback of an error",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
