"""What a reader does while it has a hostile file: files it opens, code it runs, memory, time.

Python tells an audit hook of it (PEP 578). A hook cannot be removed: one is installed once, and
notes something only while a `Watch` is on. Files that a library of another language opens by itself
it does not see: of these the canary tells, which lies in every file outside.
"""

import os
import resource
import signal
import site
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import titan_motif
from titan_motif import components, kernels
from titan_motif.components.sft import template_process
from titan_motif.drill.hostile_case import PLANTED, Place

MAX_SECONDS = 10.0
MAX_MEMORY_BYTES = 500_000_000
_MOST_ADDRESSES_BYTES = 4_000_000_000
"""More than this a case is not given: a reader that takes all memory is told, not the machine."""

_OWN = {
    os.path.realpath(root)
    for root in (
        sys.prefix,
        sys.base_prefix,
        *site.getsitepackages(),
        *sysconfig.get_paths().values(),
        *(root for package in (titan_motif, components, kernels) for root in package.__path__),
    )
}
"""The interpreter, the installed packages, and this one."""
_SYSTEM = ("/dev/null", "/dev/urandom", "/proc/", "/sys/", "/etc/localtime", "/usr/share/zoneinfo")
_PATHS = {
    **dict.fromkeys(("open", "os.listdir", "os.scandir", "os.remove", "os.rmdir", "os.mkdir"), 1),
    **dict.fromkeys(("os.chmod", "os.chown", "os.truncate", "os.utime", "shutil.rmtree"), 1),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move"), 2),
}
"""Events about files, and how many of their arguments are paths."""
_NEVER = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"),
    "pickle.find_class",
}
"""Events of programs, connections and pickles, which no reader needs."""


class Watch:
    """What was seen of a reader."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.seen: list[str] = []
        """What it must not do, a line each."""
        self.seconds = 0.0
        self.memory_bytes = 0
        self._inside = os.path.realpath(place.inside)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an event that is no reader's own affair."""
        paths = arguments[: _PATHS.get(event, 0)]
        for path in filter(_is_path, paths):
            if not self._may_open(path):
                self.seen.append(f"{event} of {os.fsdecode(path)}")
        if event in _NEVER or self._runs(event, arguments):
            self.seen.append(f"{event} {' '.join(map(str, arguments[:2]))}"[:200])

    def _runs(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Return whether code of the files, or a program, is about to run."""
        first = arguments[0] if arguments else None
        match event:
            case "subprocess.Popen":
                return not _is_template_process(arguments)
            case "import":
                return str(first).partition(".")[0] == PLANTED
            case "exec":
                file = os.path.realpath(getattr(first, "co_filename", ""))
                return file.startswith(self._inside)
            case "ctypes.dlopen":
                return _is_path(first) and os.sep in str(first) and not self._may_open(first)
        return False

    def _may_open(self, path: Any) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        if real.startswith(_SYSTEM):
            return True
        return any(real == own or real.startswith(own + os.sep) for own in {*_OWN, self._inside})


_on: Watch | None = None
_is_installed = False
_lock = threading.Lock()


@contextmanager
def watched(place: Place) -> Iterator[Watch]:
    """Watch what is done within, of all threads, and end it after MAX_SECONDS where that is due.

    A reader that takes too long, or too much memory, is noted with the rest.
    """
    global _on
    _install()
    watch = Watch(place)
    with _lock, _few_addresses(), _few_seconds():
        before, begin = _reset_memory(), time.monotonic()
        _on = watch
        try:
            yield watch
        finally:
            _on = None
            watch.seconds = time.monotonic() - begin
            watch.memory_bytes = max(_peak_memory() - before, 0)
    if watch.seconds > MAX_SECONDS:
        watch.seen.append(f"{watch.seconds:.0f} s")
    if watch.memory_bytes > MAX_MEMORY_BYTES:
        watch.seen.append(f"{watch.memory_bytes / 1e6:.0f} MB")
    if place.marker.exists():
        watch.seen.append("a payload has run")


def _install() -> None:
    global _is_installed
    if not _is_installed:
        sys.addaudithook(_hook)
        _is_installed = True


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _on
    watch = _on
    if watch is not None:
        _on = None  # what noting does is not noted
        try:
            watch.note(event, arguments)
        finally:
            _on = watch


def _is_path(value: Any) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


def _is_template_process(arguments: tuple[Any, ...]) -> bool:
    """Return whether a process is the one that templates are rendered in."""
    return list(arguments[1]) == [sys.executable, "-I", template_process.__file__]


@contextmanager
def _few_addresses() -> Iterator[None]:
    """Give this process little more memory than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MOST_ADDRESSES_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _few_seconds() -> Iterator[None]:
    """Raise TimeoutError in what takes too long, where a signal can: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _raise_timeout)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS + 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise_timeout(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"it takes more than {MAX_SECONDS:.0f} s")


def _reset_memory() -> int:
    """Forget the most memory that this process had, and return what it has in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # where that is not allowed, more than ever before is seen alone
        return _peak_memory()
    return _status("VmRSS")


def _peak_memory() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(name))
