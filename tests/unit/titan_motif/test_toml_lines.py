"""In which line a key of a TOML file stands."""

from pathlib import Path

import tomli

from titan_motif.toml_lines import key_lines

ROOT = Path(__file__).resolve().parents[3]
TEXT = '''\
base = "other.toml"   # a comment with [brackets] and "quotes

[job]
description = """two
lines = 3 # no key
end"""

[model.args]
"d\\u0069m" = 8
lam_init = [
  0.1,  # first ]
  0.2,
]
layers.first = 'C:\\\\path'

[[curriculum.sources]]
name = "a = 1"

[[curriculum.sources]]
name = "b\\"#"
weights = { x = 1, y = 2 }
[curriculum.sources.more]
deep = true
'''


def test_every_key_has_its_line():
    assert key_lines(TEXT) == {
        "base": 1,
        "job": 3,
        "job.description": 4,
        "model.args": 8,
        "model.args.dim": 9,
        "model.args.lam_init": 10,
        "model.args.layers.first": 14,
        "curriculum.sources": 16,
        "curriculum.sources.1": 16,
        "curriculum.sources.1.name": 17,
        "curriculum.sources.2": 19,
        "curriculum.sources.2.name": 20,
        "curriculum.sources.2.weights": 21,
        "curriculum.sources.2.more": 22,
        "curriculum.sources.2.more.deep": 23,
    }


def leaves(table: dict, prefix: str = ""):
    """Yield the names of all values, those of lists of tables with their numbers."""
    for name, value in table.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for index, entry in enumerate(value, start=1):
                yield from leaves(entry, f"{prefix}{name}.{index}.")
        elif isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_keys_of_the_projects_own_files_stand_where_it_says():
    for file in sorted((ROOT / "train_configs").glob("*.toml")):
        text = file.read_text()
        found, lines = key_lines(text), text.splitlines()
        for name in leaves(tomli.loads(text)):
            *table, last = name.split(".")
            while name not in found:  # of a table in one line
                name = ".".join(table)
                *table, last = table
            assert last in lines[found[name] - 1], (file.name, name)
