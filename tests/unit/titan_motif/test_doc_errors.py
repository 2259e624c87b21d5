"""Messages that docs/errors.md and docs/evaluation.md quote are still those of the source."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/errors.md"
HEADINGS = re.findall(r"^### `(.+)`$", PAGE.read_text(), re.M)


def quoted_in_lists(page: Path) -> list[str]:
    """Messages in the items of a page's lists: code, with `…` for what differs."""
    items = re.findall(r"^- .+(?:\n  .+)*", page.read_text(), re.M)
    spans = [span for item in items for span in re.findall(r"`([^`]+)`", item)]
    return [" ".join(span.split()) for span in spans if "…" in span]


IN_LISTS = quoted_in_lists(ROOT / "docs/evaluation.md")
MESSAGES = [*HEADINGS, *IN_LISTS]


def literals(tree: ast.AST) -> list[str]:
    """All texts of a module, formatted ones with `…` for what is filled in."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [getattr(part, "value", None) for part in node.values]
            found.append("".join(part if isinstance(part, str) else "…" for part in parts))
    return found


@cache
def source() -> str:
    """What the source can say, a text a line."""
    texts = []
    for folder in ("titan_motif", "components", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            texts += literals(ast.parse(path.read_text()))
    texts += [path.read_text() for path in sorted(ROOT.glob("*.sh"))]
    return "\n".join(re.sub(r"\$\{?\w+\}?", "…", text) for text in texts)


def fixed_parts(message: str) -> list[str]:
    """The parts of a message that do not differ, each of which one text of the source has.

    The name of a setting at the beginning comes from elsewhere than the sentence about it.
    """
    sentence = re.sub(r"^(checkpoint: |[a-z_]+(\.\w+)+(?= is | names ))", "…", message)
    return [part.strip() for part in sentence.split("…") if len(part.strip()) > 3]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_still_told(message: str):
    parts = fixed_parts(message)
    assert parts
    assert max(map(len, parts)) >= 10, "too little of it is fixed to be found"
    assert [part for part in parts if part not in source()] == []


def test_a_message_that_nobody_tells_is_found_out():
    assert len(HEADINGS) >= 20
    assert len(IN_LISTS) == 3
    told, untold = fixed_parts("… is not a setting; … is no mistake that anybody makes")
    assert told in source()
    assert untold not in source()


def test_every_message_is_explained():
    for block in re.split(r"^###? ", PAGE.read_text(), flags=re.M)[1:]:
        heading, _, text = block.partition("\n")
        assert text.strip() or not heading.startswith("`"), heading
