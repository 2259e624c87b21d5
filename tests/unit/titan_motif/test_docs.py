"""What the documentation has to keep up with, beside its commands, links and messages."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_every_assumption_is_listed():
    marked = {
        str(path.relative_to(ROOT))
        for folder in ("titan_motif", "components", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if "ASSUMPTION:" in path.read_text()
    }
    listed = set(re.findall(r"^\| `([^`]+)`", (ROOT / "docs/assumptions.md").read_text(), re.M))
    assert marked == listed


def test_a_top_level_kernels_folder_hides_no_package():
    # Run as a user would, with the repository's root first on the path: see kernels/__init__.py.
    code = "from transformers.utils import import_utils; import_utils.is_kernels_available()"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
