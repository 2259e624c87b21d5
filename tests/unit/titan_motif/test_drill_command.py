"""The drill's command: which cases it runs, what it keeps, and the page."""

from pathlib import Path

import pytest

from titan_motif.drill import command
from titan_motif.drill.command import Options, main
from titan_motif.drill.fault import Fault, Outcome
from titan_motif.drill.ledger import Entry, Ledger


class Faults:
    """Two faults whose cases do nothing; some of them are not held."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []
        self.failing: set[tuple[str, int]] = set()
        self.all = {name: self._fault(name, count) for name, count in (("a", 3), ("b", 4))}

    def _fault(self, name: str, count: int) -> Fault:
        def run(case: int, folder: Path) -> Outcome:
            assert not list(folder.iterdir())
            (folder / "left").touch()
            self.ran.append((name, case))
            if (name, case) == ("b", 3):
                raise OSError("no room")
            return Outcome((name, case) not in self.failing, f"of `{name}`\n{case}")

        return Fault(name, f"{name} is put in", "all holds", count, 2, run)


@pytest.fixture
def faults(monkeypatch) -> Faults:
    made = Faults()
    monkeypatch.setattr(command, "FAULTS", made.all)
    return made


def options(folder: Path, **given) -> Options:
    return Options(output=folder / "docs", work=folder / "work", **given)


def test_cases_that_were_held_are_not_run_again(faults: Faults, tmp_path: Path, capsys):
    faults.failing = {("a", 1)}
    with pytest.raises(ValueError, match=r"^2 cases were not held: a 1, b 3$"):
        main(options(tmp_path))
    assert faults.ran == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2), ("b", 3)]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["a-1", "b-3"]
    page = (tmp_path / "docs/reliability.md").read_text()
    assert "| [a](#a) | 2 | 3 | 0.0 |" in page
    assert "- case 3: `the drill failed: OSError: no room`" in page
    assert "- case 1: `` of `a` 1 ``" in page

    faults.ran, faults.failing = [], set()
    with pytest.raises(ValueError, match=r"^1 cases were not held: b 3$"):
        main(options(tmp_path))
    assert faults.ran == [("a", 1), ("b", 3)]
    page = (tmp_path / "docs/reliability.md").read_text()
    assert "| [a](#a) | 3 | 3 | 0.0 |" in page
    assert "Of these 1 were held only when run again, at the same commit." in page
    assert len(Ledger(tmp_path / "docs/reliability/ledger.jsonl").entries()) == 9


def test_again_runs_what_was_held_at_another_commit(faults: Faults, tmp_path: Path, monkeypatch):
    for commit, cases, count in (("one", [0, 1], 2), ("two", [0], 1), ("two", [1, 2], None)):
        faults.ran = []
        monkeypatch.setenv("TITAN_MOTIF_COMMIT", commit)
        main(options(tmp_path, only=("a",), count=count, again=True))
        assert faults.ran == [("a", case) for case in cases]
    monkeypatch.setenv("TITAN_MOTIF_COMMIT", "three")
    main(options(tmp_path, only=("a",), count=1, again=True))
    page = (tmp_path / "docs/reliability.md").read_text()
    assert "Commits: two (2), three (1); torch" in page


def test_parts_and_counts(faults: Faults, tmp_path: Path):
    main(options(tmp_path, part="1/2", count=3))
    assert faults.ran == [("a", 1), ("b", 1)]
    main(options(tmp_path, part="0/2", count=3))
    assert faults.ran[2:] == [("a", 0), ("a", 2), ("b", 0), ("b", 2)]
    assert "| [b](#b) | 3 | 3 (4 planned) | 0.0 |" in (tmp_path / "docs/reliability.md").read_text()


def test_quick_keeps_nothing(faults: Faults, tmp_path: Path, capsys):
    main(options(tmp_path, quick=True))
    assert faults.ran == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == "a: 2 of 2 held\nb: 2 of 2 held\n"
    faults.failing = {("b", 1)}
    with pytest.raises(ValueError, match=r"^1 cases were not held: b 1$"):
        main(options(tmp_path, quick=True))


def test_wrong_options_and_another_file_are_refused(faults: Faults, tmp_path: Path):
    for given, told in (
        ({"count": 0}, "--count is 0; at least 1"),
        ({"part": "2/2"}, "--part is '2/2'; I/N"),
        ({"part": "a"}, "--part is 'a'; I/N"),
    ):
        with pytest.raises(ValueError, match=f"^{told}"):
            main(options(tmp_path, **given))
    file = tmp_path / "docs/reliability/ledger.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"fault": "a"}\n')
    with pytest.raises(ValueError, match=r"ledger.jsonl: is no ledger of the drill$"):
        main(options(tmp_path))
    assert faults.ran == []


def test_a_line_that_was_cut_off_costs_that_entry_alone(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    entry = Entry("a", 0, True, "é", 0.5, "abc", "2", 2)
    ledger.add(entry)
    with ledger.path.open("a") as file:
        file.write('{"fault": "a", "ca')
    assert ledger.entries() == [entry]
    ledger.add(entry._replace(case=1))
    assert ledger.entries() == [entry, entry._replace(case=1)]
