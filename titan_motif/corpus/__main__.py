"""Prepare the built-in corpus: `python -m titan_motif.corpus --output data/builtin`."""

import argparse
import sys
from collections.abc import Sequence

from titan_motif.components.foreign_files import printable
from titan_motif.corpus.prepare import prepare


def main(argv: Sequence[str]) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m titan_motif.corpus",
        description="Prepare the built-in corpus; does nothing where it is ready.",
    )
    parser.add_argument("--output", default="data/builtin", help="folder (default %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=1024, help="default %(default)s")
    parser.add_argument("--megabytes", type=float, default=9.0, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    options = parser.parse_args(argv)
    try:
        prepare(options.output, options.vocab_size, options.megabytes, options.seed)
    except (OSError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
