"""What the documentation has to keep up with."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import titan_motif.device  # noqa: F401

# isort: split
import torchtitan.config.job_config as torchtitan_config

from titan_motif import config

ROOT = Path(__file__).resolve().parents[3]


def changed_fields(ours: type, theirs: type | None, prefix: str = "") -> list[str]:
    """Fields that torchtitan's section does not have, or has with another type or default."""
    known = {f.name: f for f in dataclasses.fields(theirs)} if theirs else {}
    names = []
    for field in dataclasses.fields(ours):
        old = known.get(field.name)
        if dataclasses.is_dataclass(field.type):
            names += changed_fields(field.type, old and old.type, f"{prefix}{field.name}.")
        elif not old or (old.type, old.default) != (field.type, field.default):
            names.append(prefix + field.name)
    return names


def test_every_field_of_ours_is_in_the_reference():
    text = (ROOT / "docs/configuration.md").read_text()
    fields = changed_fields(config.JobConfig, torchtitan_config.JobConfig)
    assert "training.builtin_vocab_size" in fields
    missing = []
    for name in fields:
        section, _, leaf = name.rpartition(".")
        if not re.search(rf"`{section}\.[^|]*\b{leaf}`", text):
            missing.append(name)
    assert not missing


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
