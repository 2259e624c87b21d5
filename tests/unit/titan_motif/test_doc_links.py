"""Links of the README and of docs/: files, pictures and headings that they name are there."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def without_code(text: str) -> str:
    """The text without code blocks and code in lines, in which brackets are no links."""
    text = re.sub(r"^( *)(`{3,}|~{3,}).*?^\1\2", "", text, flags=re.M | re.S)
    return re.sub(r"(`+).+?\1", "", text)


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures."""
    text = without_code(text)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    reference_style = re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.M)
    return (
        inline + reference_style + re.findall(r"<(?:img|a)[^>]*\s(?:src|href)=\"([^\"]+)\"", text)
    )


@cache
def anchors(page: Path) -> frozenset[str]:
    """What a link to a page may have after `#`, as GitHub and mkdocs both name it."""
    text = page.read_text()
    found = set(re.findall(r"<a id=\"([^\"]+)\"", text))
    text = re.sub(r"^( *)(`{3,}|~{3,}).*?^\1\2", "", text, flags=re.M | re.S)
    for heading in re.findall(r"^#+ +(.+?) *#*$", text, re.M):
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading)
        words = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        on_github = re.sub(r"\s", "-", words)
        on_the_site = re.sub(r"[-\s]+", "-", words.encode("ascii", "ignore").decode())
        if on_github == on_the_site:
            found.add(on_github)
    return frozenset(found)


def problem(page: Path, target: str) -> str | None:
    """What is wrong with a link of a page; None if nothing is, or if it leads to the network."""
    if re.match(r"(https?|mailto):", target):
        return None
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return f"{target}: there is no {path}"
    if not file.is_relative_to(ROOT):
        return f"{target}: lies outside of the repository"
    if page.is_relative_to(ROOT / "docs") and not file.is_relative_to(ROOT / "docs"):
        return f"{target}: the site has nothing outside of docs/"
    if anchor and file.suffix == ".md" and anchor not in anchors(file):
        return f"{target}: {file.name} has no heading {anchor}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path):
    problems = [problem(page, target) for target in links(page.read_text())]
    assert [told for told in problems if told] == []


def test_links_are_found_and_wrong_ones_told(tmp_path: Path):
    text = """See [a](data.md#the-order "title"), ![b](images/report.png) and `[c](no.md)`.
```
[d](no.md)
```
[e]: ../README.md
"""
    assert links(text) == ["data.md#the-order", "images/report.png", "../README.md"]
    page = ROOT / "docs/muon.md"
    assert problem(page, "data.md#the-order") is None
    assert problem(page, "https://example.org/nothing") is None
    assert problem(page, "reference.md#training.seq_len") is None
    assert "no data.txt" in problem(page, "data.txt")
    assert "no heading the-disorder" in problem(page, "data.md#the-disorder")
    assert "nothing outside" in problem(page, "../README.md")


def test_every_picture_is_shown_somewhere():
    shown = {
        (page.parent / target).resolve() for page in PAGES for target in links(page.read_text())
    }
    assert set((ROOT / "docs/images").iterdir()) <= shown


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"[- ](\w+\.md)$", text[text.index("\nnav:") :], re.M)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_site_builds_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # mkdocs-material's, of itself
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout + finished.stderr) == (0, "")
