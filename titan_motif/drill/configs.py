"""Bad configs: each is refused with one line before any process starts, and nothing is written."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch.distributed

import titan_motif
from titan_motif import check_config
from titan_motif.drill.bad_combinations import COMBINATIONS
from titan_motif.drill.bad_files import COMMAND_LINES, FILES
from titan_motif.drill.bad_layouts import LAYOUTS
from titan_motif.drill.bad_values import VALUES
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.written import paths_written
from titan_motif.toml_lines import key_lines

_BASE = Path(titan_motif.__file__).resolve().parents[1] / "train_configs/debug.toml"
_NAME = "bad.toml"


class BadConfig(NamedTuple):
    """A job that has to be refused."""

    content: bytes
    """Of its file."""
    arguments: tuple[str, ...]
    """Of its command line, besides the file."""
    processes: int
    line: str | None
    """What stands in the line of the file that the refusal has to name; None: it has to name the
    command line."""
    words: tuple[str, ...]
    """What it has to tell: the key, what was found, what is allowed."""


@cache
def bad_configs() -> tuple[BadConfig, ...]:
    """Return all of them, in an order that mixes their kinds."""
    base = _BASE.read_text()
    found = []
    for key, value, words in VALUES:
        found.append(_edited(base, key, (f"{key} = {value}",), words))
    for one in (*LAYOUTS, *COMBINATIONS):
        found.append(_edited(base, one.key, one.settings, one.words, one.processes))
    for one in FILES:
        assert one.old in base, one.old
        content = base.encode().replace(one.old.encode(), one.new, 1)
        found.append(BadConfig(content, (), 2, one.line, one.words))
    for arguments, words in COMMAND_LINES:
        found.append(BadConfig(base.encode(), arguments, 2, None, (words,)))
    stride = 37  # has no divisor in common with their number, so that it reaches all
    return tuple(found[i * stride % len(found)] for i in range(len(found)))


def _edited(
    base: str, key: str, settings: tuple[str, ...], words: str, processes: int = 2
) -> BadConfig:
    text = base
    for setting in settings:
        text = with_setting(text, *setting.split(" = ", 1))
    place = key
    while place not in key_lines(text):
        place = place.rpartition(".")[0]
    line = text.splitlines()[key_lines(text)[place] - 1]
    return BadConfig(text.encode(), (), processes, line, (f": {key} ", words))


def with_setting(text: str, key: str, value: str) -> str:
    """Return a TOML text in which a setting has another value, in its line or in a new one."""
    lines, found = text.splitlines(), key_lines(text)
    section, _, name = key.rpartition(".")
    if key in found:
        lines[found[key] - 1] = f"{name} = {value}"
    elif section in found:
        lines.insert(found[section], f"{name} = {value}")
    else:
        lines += ["", f"[{section}]", f"{name} = {value}"]
    return "\n".join(lines) + "\n"


def run(case: int, folder: Path) -> Outcome:
    """Check a bad job as run_train.sh does before it starts a process."""
    bad = bad_configs()[case]
    accepted = checked(_BASE.read_bytes(), (), 2, folder)
    if accepted.code != 0 or accepted.problem:
        why = accepted.problem or accepted.told
        return Outcome(False, f"{_BASE.name} itself is not accepted: {why}")
    refusal = checked(bad.content, bad.arguments, bad.processes, folder)
    missed = refusal.problem or _missed(bad, refusal, folder / _NAME)
    return Outcome(missed is None, refusal.told if missed is None else f"{missed}: {refusal.told}")


class Checked(NamedTuple):
    """What the check of a job came to."""

    code: int
    told: str
    problem: str | None
    """What it must not do and did."""


def checked(content: bytes, arguments: tuple[str, ...], processes: int, folder: Path) -> Checked:
    """Check a job of a file in a folder that is the current one."""
    file = folder / _NAME
    file.write_bytes(content)
    words = ["--world-size", str(processes), "--job.config_file", str(file), *arguments]
    output, errors, group = io.StringIO(), io.StringIO(), mock.Mock(side_effect=AssertionError)
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        mock.patch.object(torch.distributed, "init_process_group", group),
        mock.patch.object(torch.distributed.distributed_c10d, "init_process_group", group),
        paths_written() as written,
    ):
        try:
            code = check_config.main(words)
        except Exception as error:
            return Checked(1, "", f"it raises {type(error).__name__}: {error}")
    problem = None
    if group.called or torch.distributed.is_initialized():
        problem = "a process group was formed"
    elif written:
        problem = f"{written[0]} was written"
    elif code != 0 and output.getvalue():
        problem = f"{output.getvalue()!r} stands on the standard output"
    return Checked(code, errors.getvalue().removesuffix("\n"), problem)


def _missed(bad: BadConfig, refusal: Checked, file: Path) -> str | None:
    """Return what a refusal lacks, None if it tells all."""
    if refusal.code != 2:
        return f"it is not refused, with exit code {refusal.code}"
    if len(refusal.told.splitlines()) != 1:
        return "it is not refused by one line"
    place = r"command line" if bad.line is None else rf"{re.escape(str(file))}:(\d+)"
    match = re.match(f"error: {place}: ", refusal.told)
    if match is None:
        return "it does not say where"
    if bad.line is not None:
        lines = bad.content.decode(errors="replace").splitlines()
        if bad.line not in lines[int(match[1]) - 1]:
            return f"it names another line than that of {bad.line!r}"
    lacking = [words for words in bad.words if words not in refusal.told]
    return f"it does not say {lacking[0]!r}" if lacking else None


CONFIGS = Fault(
    name="configs",
    title="a bad config: settings, files and command lines, each wrong in its own way",
    bar=(
        "refused before any process group forms, by one line that names the file with its line "
        "(or the command line), the key, and what is allowed; nothing is written"
    ),
    count=150,
    num_quick=30,
    run=run,
)
