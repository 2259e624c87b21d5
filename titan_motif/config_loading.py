"""From a TOML file and a command line to a JobConfig, with one clear line for every mistake.

The command line overrides the file: `--section.field value` (or `--section.field=value`; of a
switch, `--section.field` is true and `--section.no_field` false). Values are read as TOML does.

A file may begin with `base = "other.toml"`, a path from its own folder: it has the settings of that
one, but for those that it gives itself. A list is taken whole.
"""

import difflib
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from titan_motif.config import JobConfig
from titan_motif.config_checks import check_values
from titan_motif.config_files import ConfigError, places, read_files
from titan_motif.config_keys import all_keys, value_of
from titan_motif.config_resolving import DECIDED_BY_PHASES, resolve
from titan_motif.config_types import (
    describe,
    fits,
    is_written_in_a_line,
    item_of,
    told,
    value_from,
)

Place = Callable[[str], str]
"""What tells where a key stands."""


def load_config(
    argv: Sequence[str],
    world_size: int | None = None,
    runs_here: bool = True,
    has_paths: bool = False,
) -> JobConfig:
    """Return the job that a command line describes.

    Args:
        argv:        the arguments after the program's name; --job.config_file names the TOML file
        world_size:  number of processes of the job; None leaves out the checks that need it
        runs_here:   whether the job's data, tokenizer and device have to be there
        has_paths:   whether what it begins from and its tokenizer have to, even so
    Raises: ConfigError naming the file (or the command line), the key, what was found and what is
            allowed
    """
    overrides = dict(_read_command_line(argv))
    path = overrides.get("job.config_file")
    if path is not None and not isinstance(path, str):
        raise ConfigError("command line: --job.config_file is given no value; a path is needed")
    if path is not None and not (path.strip() and fits(path, str)):
        told_path = f"--job.config_file is {told(path)}"
        raise ConfigError(f"command line: {told_path}; the path of a TOML file is needed")
    config = JobConfig()
    origins: dict[str, Place] = {}
    place: Place = lambda key: "defaults"  # noqa: E731
    if path is not None:
        for file, table in read_files(Path(path)):
            place = places(file)
            for key, value in _flatten(table, place):
                _assign(config, key, value, place)
                origins[key] = place
    for key, value in overrides.items():
        _assign(config, key, value, _on_the_command_line, from_text=True)
        origins[key] = _on_the_command_line
    given = {key: value_of(config, key) for key in DECIDED_BY_PHASES if key in origins}
    resolve(config, world_size)
    for key, message in check_values(config, world_size, runs_here, runs_here or has_paths):
        raise ConfigError(f"{_origin(key, origins, place)(key)}: {key} {message}")
    for key, value in given.items():
        if config.curriculum.has_phases and value_of(config, key) != value:
            raise ConfigError(
                f"{origins[key](key)}: {key} is {value}; the phases of the curriculum decide it: "
                "leave it out, or read no phases with curriculum.enable = false"
            )
    return config


def given_again(argv: Sequence[str]) -> list[str]:
    """Return the settings that a command line gives more than once; the last value of each holds.

    The name of the file is none of them: the launcher gives one before the user's.
    """
    keys = [key for key, _ in _read_command_line(argv)]
    repeated = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    return [key for key in repeated if key != "job.config_file"]


def _origin(key: str, origins: dict[str, Place], otherwise: Place) -> Place:
    """Return what tells where a setting was given, or one that it is part of."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, otherwise)


def _on_the_command_line(key: str) -> str:
    return "command line"


def _flatten(table: dict[str, Any], place: Place, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (section.field, value) of nested tables."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if "." in name:  # quoted: its section would be told by something else than TOML's tables
            raise ConfigError(f"{place(key)}: {prefix}{name!r} is not a setting{_nearest(key)}")
        kind = _find(JobConfig, key)
        if isinstance(value, dict) and (is_dataclass(kind) or (value and not _is_table(kind))):
            yield from _flatten(value, place, f"{key}.")
        else:
            yield key, value


def _is_table(kind: Any) -> bool:
    return typing.get_origin(kind) is dict


def _read_command_line(argv: Sequence[str]) -> Iterator[tuple[str, str | bool]]:
    """Yield (section.field, text), or True or False where there is no text."""
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if not argument.startswith("--"):
            raise ConfigError(f"command line: {argument!r} stands alone; write --section.field")
        name, has_value, text = argument[2:].partition("=")
        key = name.replace("-", "_")
        if not has_value and position < len(argv) and not argv[position].startswith("--"):
            text, has_value = argv[position], "="
            position += 1
        if has_value:
            yield key, text
            continue
        section, _, last = key.rpartition(".")
        if last.startswith("no_") and _find(JobConfig, key) is None:
            yield f"{section}.{last.removeprefix('no_')}", False
        else:
            yield key, True


def _find(cls: type, key: str) -> Any:
    """Return the type of section.field, or None where there is none."""
    head, _, rest = key.partition(".")
    kind = {f.name: f.type for f in fields(cls)}.get(head)
    if typing.get_origin(kind) is typing.Annotated:  # a hint for torchtitan's command line
        kind = typing.get_args(kind)[0]
    if kind is None or not rest:
        return kind
    return _find(kind, rest) if is_dataclass(kind) else None


def _assign(
    config: JobConfig,
    key: str,
    value: Any,
    place: Place,
    from_text: bool = False,
) -> None:
    """Set what a key names; ConfigError with the key's place for what cannot be."""
    kind = _find(type(config), key)
    *sections, name = key.split(".")
    written = f"{place(key)}: {'--' if from_text else ''}{key}"
    if is_dataclass(kind):
        raise ConfigError(f"{written} is a section; name one of its settings")
    if kind is None:
        raise ConfigError(f"{written} is not a setting{_nearest(key)}")
    if from_text and isinstance(value, bool) and not fits(value, kind):
        raise ConfigError(f"{written} is given no value; {describe(kind)} is needed")
    if from_text and not is_written_in_a_line(kind):
        raise ConfigError(f"{written} is a table; it is given in a TOML file")
    if isinstance(value, str) and from_text:
        value = value_from(value, kind)
    item = item_of(kind)
    if item is not None and isinstance(value, list) and all(isinstance(v, dict) for v in value):
        value = [_table(item, v, f"{key}.{i}", place) for i, v in enumerate(value, start=1)]
    if not fits(value, kind):
        raise ConfigError(f"{written} is {told(value)}; {describe(kind, value)} is needed")
    target: Any = config
    for section in sections:
        target = getattr(target, section)
    setattr(target, name, float(value) if kind is float else value)


def _table(item: Any, values: dict[str, Any], key: str, place: Place) -> Any:
    """Return a table of a list of tables; `key` ends with its number in the list."""
    kinds = {f.name: f.type for f in fields(item)}
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
            raise ConfigError(f"{place(f'{key}.{name}')}: {key}.{name} is not a setting; {hint}")
        if not fits(value, kinds[name]):
            found = f"{place(f'{key}.{name}')}: {key}.{name} is {told(value)}"
            raise ConfigError(f"{found}; {describe(kinds[name], value)} is needed")
    return item(**{n: float(v) if kinds[n] is float else v for n, v in values.items()})


def _nearest(key: str) -> str:
    keys = list(all_keys())
    same_name = [k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]]
    if same_name:  # the one whose section is the most alike
        return f"; did you mean {difflib.get_close_matches(key, same_name, n=1, cutoff=0)[0]}?"
    sections = sorted({k.rpartition(".")[0] for k in keys})
    near = difflib.get_close_matches(key, keys, n=1) or difflib.get_close_matches(key, sections)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; the sections are {', '.join(s for s in sections if '.' not in s)}"
