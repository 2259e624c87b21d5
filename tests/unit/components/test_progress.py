"""What is told of long work, on a terminal and elsewhere."""

from types import SimpleNamespace

from titan_motif.components import progress


def test_lines_tell_rate_and_time_left(capsys, monkeypatch):
    clock = iter([100.0, 100.0, 104.0, 110.0, 120.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress.byte_progress("tokenising", 100_000_000, done_bytes=20_000_000) as advance:
        advance(4_000_000)  # too early for a line
        advance(16_000_000)
        advance(20_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "tokenising: 40 of 100 MB, 2.0 MB/s, 30 s left",
        "tokenising: 60 of 100 MB, 2.0 MB/s, 20 s left",
    ]


def test_a_terminal_has_a_bar_with_the_same(capsys, monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.byte_progress("shuffling", 100_000_000) as advance:
        advance(50_000_000)
    printed = capsys.readouterr().err
    assert "shuffling" in printed
    assert "50 of 100 MB, 5.0 MB/s, 10 s left" in " ".join(printed.split())
