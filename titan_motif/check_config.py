"""Check a job before any process starts: `python -m titan_motif.check_config --world-size N ARGS`.

Packs the conversations of a fine-tuning job. Prints one line and exits with 2 where the job cannot
run. Otherwise prints `corpus: DIR VOCAB` if the job reads the built-in corpus, so that the launcher
can prepare it, and on the standard error a line for what the command line gives more than once.
`--help` lists every setting.
"""

import contextlib
import sys

import titan_motif.device  # noqa: F401  (before anything of torchtitan)
from titan_motif.components.foreign_files import printable
from titan_motif.config import JobConfig
from titan_motif.config_loading import ConfigError, given_again, load_config
from titan_motif.sft import prepare_sft


def main(argv: list[str]) -> int:
    """Return the exit code."""
    if "--help" in argv or "-h" in argv:
        import tyro

        tyro.cli(JobConfig, args=["--help"], prog="run_train.sh")
    world_size = None
    if argv[:1] == ["--world-size"]:
        world_size, argv = int(argv[1]), argv[2:]
    try:
        _pack_conversations(argv, world_size)
        config = load_config(argv, world_size)
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    for key in given_again(argv):
        print(f"command line: --{key} is given more than once; the last holds", file=sys.stderr)
    if config.training.dataset == "builtin":
        print(f"corpus: {config.training.dataset_path} {config.training.builtin_vocab_size}")
    return 0


def _pack_conversations(argv: list[str], world_size: int | None) -> None:
    """Pack what a fine-tuning job reads, if it is one; ValueError where that cannot be done."""
    try:
        config = load_config(argv, world_size, runs_here=False, has_paths=True)
    except ConfigError:  # the whole check tells it, in its own order
        return
    if config.sft.enable:
        with contextlib.redirect_stdout(sys.stderr):  # the launcher reads the standard output
            prepare_sft(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
