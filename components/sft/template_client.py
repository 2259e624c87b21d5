"""Asks the process in which a chat template is rendered; see template_process.py."""

import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

from titan_motif.components.foreign_files import parse_json, printable
from titan_motif.components.sft.template_process import (
    FORBIDDEN,
    MAX_MEMORY_BYTES,
    MAX_SECONDS,
    MAX_TEXT_BYTES,
)

_PROGRAM = Path(__file__).with_name("template_process.py")
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")
"""What the process is given of this one's: no keys, no tokens."""
_MAX_LINE_BYTES = 1 << 16


class RenderProblem(ValueError):
    """Why a conversation was not rendered, in one line."""


class TemplateClient:
    """A template in a process of its own, which begins anew after one that was ended.

    Args:
        text:  the template
        marks: what to put before and after what the assistant wrote
    Raises: RenderProblem if the text is no template
    """

    def __init__(self, text: str, marks: tuple[str, str]) -> None:
        self._first = {"text": text, "marks": marks}
        self._process: subprocess.Popen[bytes] | None = None
        self.marks_generation: bool = self._start()

    def render(self, values: dict[str, Any]) -> str:
        """Return what the template makes of values by their names.

        Raises: RenderProblem
        """
        if self._process is None:
            self._start()
        return self._ask(values)[1]

    def _start(self) -> bool:
        command = [sys.executable, "-I", str(_PROGRAM)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.sep,
            start_new_session=True,  # a Ctrl-C is this process's affair
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        weakref.finalize(self, _end, self._process)
        return self._ask(self._first)[0].get("marks_generation") is True

    def _ask(self, values: dict[str, Any]) -> tuple[dict[str, Any], str]:
        process = self._process
        assert process is not None
        try:
            process.stdin.write(json.dumps(values, default=str).encode() + b"\n")
            process.stdin.flush()
            found = parse_json(process.stdout.readline(_MAX_LINE_BYTES))
            if "problem" in found:
                raise RenderProblem(printable(str(found["problem"])))
            if not 0 <= found["bytes"] <= MAX_TEXT_BYTES:
                raise ValueError("more than a text has")
            content = process.stdout.read(found["bytes"])
            if len(content) < found["bytes"]:
                raise ValueError("less than was said")
            return found, content.decode()
        except RenderProblem:
            raise
        except (OSError, ValueError, KeyError, TypeError):  # it has ended, or speaks otherwise
            raise RenderProblem(self._how_it_ended()) from None
        except BaseException:  # a Ctrl-C: what is still to come would be taken for the next answer
            self._how_it_ended()
            raise

    def _how_it_ended(self) -> str:
        process, self._process = self._process, None
        assert process is not None
        try:
            code = process.wait(1)  # its pipes close a moment before its end
        except subprocess.TimeoutExpired:
            code = None
        _end(process)
        if code == -signal.SIGPROF:
            return f"the template takes more than {MAX_SECONDS} s of processor time"
        if code == FORBIDDEN:
            return "the template does what a sandbox forbids (it was about to open something)"
        return f"the template ended its process ({code}), which has {MAX_MEMORY_BYTES / 1e6:.0f} MB"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.stdin.close()
    process.stdout.close()
    process.wait()
