"""What must not stand in the source: whatever would run a stranger's file."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("titan_motif", "components", "kernels")

_CHECKED = "with the checked reader and planner"
ALLOWED = {
    ("titan_motif/drill/hostile_case.py", "os.system"): "what a payload would run",
    ("titan_motif/drill/hostile_checkpoints.py", "os.system"): "what a payload would run",
    ("titan_motif/drill/hostile_checkpoints.py", "FileSystemReader"): "of what it has just written",
    ("titan_motif/drill/hostile_checkpoints.py", "distributed.checkpoint.load"): _CHECKED,
    ("components/dcp_files.py", "distributed.checkpoint.load"): _CHECKED,
    ("components/checkpoint.py", "distributed.checkpoint.load"): _CHECKED,
    ("components/moving_average.py", "distributed.checkpoint.load"): _CHECKED,
    ("components/dcp_reader.py", "FileSystemReader"): "the checked reader is one",
    ("components/dcp_reader.py", "DefaultLoadPlanner"): "the checked planner is one",
    ("titan_motif/model/state_dict_adapter.py", "HuggingFaceStorageReader"): (
        "of a folder whose headers and index have been checked"
    ),
    ("titan_motif/report/page.py", "jinja2.Environment"): "of the package's own template",
    ("components/sft/template_process.py", "jinja2.Template"): "names what the sandbox returns",
}
"""Where something stands all the same, and why."""

NAMES = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler", "shelve.open"),
    *("marshal.load", "marshal.loads", "dill.load", "dill.loads", "joblib.load"),
    *("cloudpickle.load", "cloudpickle.loads", "read_pickle", "format.read_array"),
    *("os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.spawnv", "pty.spawn"),
    *("subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "builtins.eval", "builtins.exec"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "runpy.run_path"),
    *("json.load", "datasets.load_dataset", "from_pretrained", "builtins.compile"),
    *("importlib.util.spec_from_file_location", "builtins.__import__"),
    *("jinja2.Environment", "jinja2.environment.Environment", "NativeEnvironment"),
    *("jinja2.Template", "jinja2.environment.Template"),
    *("FileSystemReader", "DefaultLoadPlanner", "HuggingFaceStorageReader"),
    *("distributed.checkpoint.load", "state_dict_loader.load", "dcp_to_torch_save"),
    *("distributed.checkpoint.load_state_dict", "state_dict_loader.load_state_dict"),
}
"""Ends of full names of what is not to be used; `json.load` reads a file of any size, DCP's own
reader runs the pickle of any folder."""
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
            yield from (end for end in NAMES if f".{name}".endswith(f".{end}"))
            if isinstance(node, ast.Name) and name in CALLS:
                yield name
        if isinstance(node, ast.Call):
            yield from _wrong_in_call(node, aliases)


def _wrong_in_call(node: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    name = _full_name(node.func, aliases)
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
    if name.endswith("distributed.checkpoint.load") and not given.keys() >= {
        "storage_reader",
        "planner",
    }:
        yield "dcp.load without reader and planner"
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


_DCP = "import torch.distributed.checkpoint as dcp\n"


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
        ("f = eval", "eval"),
        ("from transformers import AutoModel\nAutoModel.from_pretrained(f)", "from_pretrained"),
        ("import pandas as pd\npd.read_pickle(f)", "read_pickle"),
        ("import numpy\nnumpy.lib.format.read_array(f, True)", "format.read_array"),
        (f"{_DCP}dcp.load(s, checkpoint_id=f)", "distributed.checkpoint.load"),
        (f"{_DCP}dcp.load(s, checkpoint_id=f)", "dcp.load without reader and planner"),
        (f"{_DCP}dcp.FileSystemReader(p).read_metadata()", "FileSystemReader"),
        ("from jinja2 import Environment as E\nE().from_string(t)", "jinja2.Environment"),
    ],
)
def test_what_must_not_stand_there_is_found(text: str, expected: str):
    assert expected in findings(text)


@pytest.mark.parametrize("end", sorted(NAMES))
def test_each_name_is_found_however_it_is_imported(end: str):
    module, _, name = f"somewhere.{end}".removeprefix("somewhere." * ("." in end)).rpartition(".")
    for text in (
        f"from {module} import {name}\n{name}(x)",
        f"from {module} import {name} as other\nclass A(other): pass",
        f"import {module}\nf = {module}.{name}",
        f"import {module} as other\nother.{name}(x)",
        f"import above.{module} as other\nother.{name}(x)",
    ):
        assert end in findings(text), text


@pytest.mark.parametrize("name", sorted(CALLS))
def test_each_builtin_is_found_called_or_not(name: str):
    assert name in findings(f"{name}(x)")
    assert name in findings(f"f = {name}")
    assert f"builtins.{name}" in findings(f"import builtins\nbuiltins.{name}(x)")


@pytest.mark.parametrize("keyword", sorted(KEYWORDS))
def test_each_keyword_is_found(keyword: str):
    assert f"{keyword}={KEYWORDS[keyword]}" in findings(f"f(x, {keyword}={KEYWORDS[keyword]})")
    assert list(findings(f"f(x, {keyword}={not KEYWORDS[keyword]})")) == []


def test_what_may_stand_there_is_not_found():
    text = (
        "import json, torch\nimport numpy as np\nimport re\n"
        "model.eval()\nre.compile('a')\ntorch.compile(f)\njson.loads(line)\n"
        "torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\n"
        "from jinja2.sandbox import ImmutableSandboxedEnvironment as E\nE()\n"
        "import safetensors.torch\nsafetensors.torch.load(f)\nmodel.load_state_dict(s)\n"
    )
    assert list(findings(text)) == []


def test_no_import_is_excused_from_the_layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert len(contracts["contracts"]) == 4
    assert [c["name"] for c in contracts["contracts"] if "ignore_imports" in c] == []
