"""What must not stand in the source: whatever would run a stranger's file."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("titan_motif", "components", "kernels")

ALLOWED = {
    ("titan_motif/drill/hostile_case.py", "os.system"): "what a payload would run",
    ("titan_motif/drill/hostile_checkpoints.py", "os.system"): "what a payload would run",
}
"""Where something stands all the same, and why."""

NAMES = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler", "shelve.open"),
    *("marshal.load", "marshal.loads", "dill.load", "dill.loads", "joblib.load"),
    *("os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.spawnv", "pty.spawn"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "builtins.eval", "builtins.exec"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "runpy.run_path"),
    *("json.load", "datasets.load_dataset", "AutoModel.from_pretrained"),
    "importlib.util.spec_from_file_location",
}
"""Full names of what is not to be used; `json.load` reads a file of any size."""
CALLS = {"eval", "exec", "compile", "__import__"}
KEYWORDS = {"weights_only": False, "trust_remote_code": True, "allow_pickle": True, "shell": True}


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [
        path
        for path in found
        if not path.is_relative_to(ROOT / "titan_motif/components")
        and not path.is_relative_to(ROOT / "titan_motif/kernels")
    ]


def findings(text: str) -> Iterator[str]:
    """Yield what a source has that must not be there."""
    tree = ast.parse(text)
    aliases = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = _full_name(node, aliases)
            if name in NAMES:
                yield name
        if isinstance(node, ast.Call):
            yield from _wrong_in_call(node, aliases)


def _wrong_in_call(node: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    name = _full_name(node.func, aliases)
    if isinstance(node.func, ast.Name) and name in CALLS:
        yield name
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    for keyword, forbidden in KEYWORDS.items():
        value = given.get(keyword)
        if value is not None and not (
            isinstance(value, ast.Constant) and value.value is not forbidden
        ):
            yield f"{keyword}={ast.unparse(value)}"
    if name == "torch.load" and "weights_only" not in given:
        yield "torch.load without weights_only"
    if name == "numpy.load" and "allow_pickle" not in given:
        yield "numpy.load without allow_pickle"
    if name == "json.loads" and node.args and _reads_a_file(node.args[0]):
        yield "json.loads of a file, which read_json bounds"


def _reads_a_file(node: ast.expr) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr in ("read", "read_text", "read_bytes")


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the names that a source has by importing, and what they stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield (
                    one.asname or one.name.partition(".")[0],
                    (one.name if one.asname else one.name.partition(".")[0]),
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                yield one.asname or one.name, f"{node.module}.{one.name}"


def _full_name(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, aliases)}.{node.attr}"
    return aliases.get(node.id, node.id) if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_in_the_source_runs_a_strangers_file(path: Path):
    name = path.relative_to(ROOT).as_posix()
    found = [one for one in findings(path.read_text()) if (name, one) not in ALLOWED]
    assert not found


def test_every_exception_is_still_needed():
    for name, one in ALLOWED:
        assert one in findings((ROOT / name).read_text())


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.sh")), ids=lambda path: path.name)
def test_no_script_runs_what_it_downloads(path: Path):
    text = path.read_text()
    assert not re.search(r"\beval\b|trust_remote_code|weights_only|\|\s*(ba)?sh\b", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import pickle\npickle.loads(b'')", "pickle.loads"),
        ("from pickle import load as f\nf(x)", "pickle.load"),
        ("import pickle as p\nclass R(p.Unpickler): pass", "pickle.Unpickler"),
        ("import torch\ntorch.load(f)", "torch.load without weights_only"),
        ("import torch\ntorch.load(f, weights_only=False)", "weights_only=False"),
        ("import torch\ntorch.load(f, weights_only=flag)", "weights_only=flag"),
        ("import numpy as np\nnp.load(f)", "numpy.load without allow_pickle"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "allow_pickle=True"),
        ("x.from_pretrained(f, trust_remote_code=True)", "trust_remote_code=True"),
        ("eval('1')", "eval"),
        ("import subprocess\nsubprocess.run(x, shell=True)", "shell=True"),
        ("import yaml\nyaml.load(f)", "yaml.load"),
        ("import json\njson.load(f)", "json.load"),
        ("import json\njson.loads(p.read_text())", "json.loads of a file, which read_json bounds"),
        ("import os\nf = os.system", "os.system"),
    ],
)
def test_what_must_not_stand_there_is_found(text: str, expected: str):
    assert expected in findings(text)


def test_what_may_stand_there_is_not_found():
    text = (
        "import json, torch\nimport numpy as np\nimport re\n"
        "model.eval()\nre.compile('a')\ntorch.compile(f)\njson.loads(line)\n"
        "torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\n"
    )
    assert list(findings(text)) == []


def test_no_import_is_excused_from_the_layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert len(contracts["contracts"]) == 4
    assert [c["name"] for c in contracts["contracts"] if "ignore_imports" in c] == []
