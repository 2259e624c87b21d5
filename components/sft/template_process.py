"""The process in which chat templates are rendered: a program of a stranger's, kept small.

A template is a program. Jinja's sandbox keeps it from Python's insides, but not from running for
ever, nor from taking all memory; and sandboxes have had holes. So it runs here, in a process that
has a limit of processor time and of memory, and that ends where a file, a connection or another
process is about to be opened. It imports jinja2 alone, and is run as a file:

    stdin:   a line of JSON with the template; then a line for each conversation
    stdout:  for each a line of JSON, {"problem": ...} or {"bytes": ...}, and so many bytes of text
"""

import codecs
import contextlib
import json
import os
import pprint  # noqa: F401
import random  # noqa: F401
import resource
import signal
import sys
import textwrap  # noqa: F401
from typing import Any

import jinja2.debug  # noqa: F401  (as those above: Jinja imports them late, which is too late here)
from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 2
"""Of processor time, for a conversation; one of a million tokens takes a tenth."""
MAX_MEMORY_BYTES = 400_000_000
MAX_TEXT_BYTES = 2_000_000
"""Of a rendered conversation: 61 bytes for each of 32,768 tokens; text has 4 to 6. Whoever asks
makes tokens of it, without a limit of memory: 0.8 GB if each byte is one."""
FORBIDDEN = 77
"""The exit code of a process that was about to open something."""
_LONGEST_REASON = 300
"""Characters of what an exception says that are told."""
_OPENING = (
    *("open", "import", "mmap.", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "glob."),
    *("pty.", "fcntl.", "pickle.", "marshal.", "urllib.", "http.", "ftplib.", "sqlite3."),
)
_NESTED = "a {% generation %} block stands within another, which is learnt whole"


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: what stands within is the assistant's."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own form)
    marks = ("", "")

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        if _has_generation(nodes.Scope(body)):
            parser.fail(_NESTED, line)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        begin, end = self.marks
        inside = caller()
        if begin in inside:  # of a macro that is called within
            raise TemplateError(_NESTED)
        return f"{begin}{inside}{end}"


def _has_generation(tree: nodes.Node) -> bool:
    return any(
        isinstance(block.call, nodes.Call) and isinstance(block.call.node, nodes.ExtensionAttribute)
        for block in tree.find_all(nodes.CallBlock)
    )


def _compiled(text: str) -> tuple[Template, bool]:
    """Return a template, and whether it marks what the assistant wrote."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    text.encode()
    return environment.from_string(text), _has_generation(environment.parse(text))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: Jinja's own sorts keys, and escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(str(message))


def _problem(error: Exception) -> str:
    """Return why a template did not render a conversation."""
    if isinstance(error, SecurityError):
        return f"the template does what a sandbox forbids ({_reason(error)})"
    if isinstance(error, UndefinedError) and error.message == "'strftime_now' is undefined":
        return (
            "the template calls strftime_now, which is not there: the same data would give other "
            "tokens each day; write a date in its place"
        )
    if isinstance(error, TemplateError):
        return f"the template refuses it: {_reason(error)}"
    if isinstance(error, UnicodeEncodeError):
        return "the template renders half of a surrogate pair, which is no character"
    return f"the template fails on it ({_reason(error)})"


def _reason(error: Exception) -> str:
    """Return what an exception says, in one line that can be printed."""
    if isinstance(error, TemplateSyntaxError):
        told = f"{error.message}, line {error.lineno}"
    elif isinstance(error, TemplateError):
        told = str(error.message)
    else:  # a SyntaxError would name a line of what Jinja made
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        told = f"{type(error).__name__}: {said}" if said else type(error).__name__
    told = " ".join(told.split())[:_LONGEST_REASON]
    return told.encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def _limited() -> Any:
    """Have the system end this process where a template takes too long, within C code too."""
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _end_at(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and arguments[0] == "<template>":  # Python, to show a line that is wrong
        return
    if event.startswith(_OPENING):
        os._exit(FORBIDDEN)


def _confine() -> None:
    """Take from this process what no template needs; for good."""
    codecs.lookup("unicode_escape")  # Jinja reads texts with it
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_end_at)


def _answer(found: dict[str, Any], text: bytes = b"") -> None:
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n" + text)
    sys.stdout.buffer.flush()


def main() -> None:
    """Compile the template of the first line, and render it for each line after it."""
    first = json.loads(sys.stdin.buffer.readline())
    _Generation.marks = tuple(first["marks"])
    _confine()
    try:
        with _limited():
            template, marks_generation = _compiled(first["text"])
    except Exception as error:  # of Python too, which compiles what Jinja makes of it
        _answer({"problem": _reason(error)})
        return
    _answer({"marks_generation": marks_generation, "bytes": 0})
    for line in sys.stdin.buffer:
        try:
            values = json.loads(line)
            with _limited():
                text = template.render(**values).encode()
            if len(text) > MAX_TEXT_BYTES:
                _answer({"problem": f"the template renders more than {MAX_TEXT_BYTES:,} bytes"})
            else:
                _answer({"bytes": len(text)}, text)
        except Exception as error:  # a template is a program: it can raise any, MemoryError too
            _answer({"problem": _problem(error)})


if __name__ == "__main__":
    main()
