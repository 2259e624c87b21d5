"""torchrun without its own traceback: `python -m titan_motif.launch TORCHRUN_ARGUMENTS`.

Where a rank has failed, torchrun says which one and why, and then shows the stack of the launcher,
which tells a reader nothing.
"""

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: Sequence[str]) -> int:
    """Start the ranks, wait for them, and return the exit code: 0, or 1 if one has failed."""
    try:
        run.run(run.parse_args(list(argv)))
    except ChildFailedError as error:
        print(error.format_msg(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
