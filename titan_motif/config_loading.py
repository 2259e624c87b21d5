"""From a TOML file and a command line to a JobConfig, with one clear line for every mistake.

The command line overrides the file: `--section.field value` (or `--section.field=value`; of a
switch, `--section.field` is true and `--section.no_field` false). Values are read as TOML does.

A file may begin with `base = "other.toml"`, a path from its own folder: it has the settings of that
one, but for those that it gives itself. A list is taken whole.
"""

import difflib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import tomli

from titan_motif.config import JobConfig
from titan_motif.config_checks import check_values
from titan_motif.config_keys import all_keys, value_of
from titan_motif.config_resolving import DECIDED_BY_PHASES, resolve
from titan_motif.toml_lines import key_lines


class ConfigError(ValueError):
    """A mistake of the user's in a configuration; its text is one line."""


def load_config(
    argv: Sequence[str],
    world_size: int | None = None,
    runs_here: bool = True,
    has_paths: bool | None = None,
) -> JobConfig:
    """Return the job that a command line describes.

    Args:
        argv:        the arguments after the program's name; --job.config_file names the TOML file
        world_size:  number of processes of the job; None leaves out the checks that need it
        runs_here:   whether the job's data, tokenizer and device have to be there
        has_paths:   whether what it begins from and its tokenizer have to, if that is not the same
    Raises: ConfigError naming the file (or the command line), the key, what was found and what is
            allowed
    """
    overrides = dict(_read_command_line(argv))
    path = overrides.get("job.config_file")
    if path is not None and not isinstance(path, str):
        raise ConfigError("command line: --job.config_file is given no value; a path is needed")
    config = JobConfig()
    origins: dict[str, str] = {}
    place: Callable[[str], str] = lambda key: "defaults"  # noqa: E731
    if path is not None:
        for file, table in read_files(Path(path)):
            place = _places(file)
            for key, value in _flatten(table):
                _assign(config, key, value, place)
                origins[key] = place(key)
    for key, value in overrides.items():
        _assign(config, key, value, lambda key: "command line", from_text=True)
        origins[key] = "command line"
    given = {key: value_of(config, key) for key in DECIDED_BY_PHASES if key in origins}
    resolve(config, world_size)
    has_paths = runs_here if has_paths is None else has_paths
    for key, message in check_values(config, world_size, runs_here, has_paths):
        raise ConfigError(f"{_origin(key, origins) or place(key)}: {key} {message}")
    for key, value in given.items():
        if config.curriculum.has_phases and value_of(config, key) != value:
            raise ConfigError(
                f"{origins[key]}: {key} is {value}; the phases of the curriculum decide it: leave "
                "it out, or read no phases with curriculum.enable = false"
            )
    return config


def _origin(key: str, origins: dict[str, str]) -> str | None:
    """Return where a setting was given, or one that it is part of."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key)


def _places(file: Path) -> Callable[[str], str]:
    """Return what tells in which line of a file a key stands, or the table that it would be in."""
    lines = key_lines(file.read_text(encoding="utf-8"))

    def place(key: str) -> str:
        while key and key not in lines:
            key = key.rpartition(".")[0]
        return f"{file}:{lines[key]}" if key else str(file)

    return place


def read_files(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the tables of a file and of those it is based on, the furthest one first.

    Raises: ConfigError for a file that cannot be read, is no TOML, or is based on itself
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    while True:
        table = _read_toml(path)
        found.insert(0, (path, table))
        if "base" not in table:
            return found
        base = table.pop("base")
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base is {base!r}; the name of a TOML file is needed")
        path = path.parent / base
        if any(path.resolve() == file.resolve() for file, _ in found):
            raise ConfigError(f"{found[0][0]}: base is {base!r}; that is based on this file")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomli.load(file)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.toml")])
        hint = f"; did you mean {path.with_stem(near[0])}?" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _flatten(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (section.field, value) of nested tables."""
    for name, value in table.items():
        if (
            isinstance(value, dict)
            and typing.get_origin(_find(JobConfig, prefix + name)) is not dict
        ):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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
    place: Callable[[str], str],
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
    if from_text and isinstance(value, bool) and not _fits(value, kind):
        raise ConfigError(f"{written} is given no value; {_describe(kind)} is needed")
    if from_text and not _is_written_in_a_line(kind):
        raise ConfigError(f"{written} is a table; it is given in a TOML file")
    if isinstance(value, str) and from_text:
        value = _from_text(value, kind)
    item = _item_of(kind)
    if item is not None and isinstance(value, list) and all(isinstance(v, dict) for v in value):
        value = [_table(item, v, f"{key}.{i}", place) for i, v in enumerate(value, start=1)]
    if not _fits(value, kind):
        raise ConfigError(f"{written} is {value!r}; {_describe(kind)} is needed")
    target: Any = config
    for section in sections:
        target = getattr(target, section)
    setattr(target, name, float(value) if kind is float else value)


def _item_of(kind: Any) -> Any:
    """Return the dataclass that a list holds, or None."""
    if typing.get_origin(kind) is list and is_dataclass(typing.get_args(kind)[0]):
        return typing.get_args(kind)[0]
    return None


def _is_written_in_a_line(kind: Any) -> bool:
    return _item_of(kind) is None and typing.get_origin(kind) is not dict


def _table(item: Any, values: dict[str, Any], key: str, place: Callable[[str], str]) -> Any:
    """Return a table of a list of tables; `key` ends with its number in the list."""
    kinds = {f.name: f.type for f in fields(item)}
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
            raise ConfigError(f"{place(f'{key}.{name}')}: {key}.{name} is not a setting; {hint}")
        if not _fits(value, kinds[name]):
            found = f"{place(f'{key}.{name}')}: {key}.{name} is {value!r}"
            raise ConfigError(f"{found}; {_describe(kinds[name])} is needed")
    return item(**{n: float(v) if kinds[n] is float else v for n, v in values.items()})


def _nearest(key: str) -> str:
    keys = list(all_keys())
    same_name = [k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(key, keys, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    sections = sorted({k.partition(".")[0] for k in keys})
    return f"; the sections are {', '.join(sections)}"


def _members(kind: Any) -> tuple[Any, ...]:
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if is_union else (kind,)


def _from_text(text: str, kind: Any) -> Any:
    members = _members(kind)
    if type(None) in members and text.lower() == "none":
        return None
    if any(member is str or typing.get_origin(member) is Literal for member in members):
        return text
    if list[str] in members:
        return [part for part in text.split(",") if part]
    if bool in members and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text


def _fits(value: Any, kind: Any) -> bool:
    for member in _members(kind):
        origin = typing.get_origin(member)
        if origin is Literal:
            fits = type(value) is str and value in typing.get_args(member)
        elif origin is list:
            (item,) = typing.get_args(member)
            fits = isinstance(value, list) and all(_fits(entry, item) for entry in value)
        elif origin is dict:
            _, item = typing.get_args(member)
            fits = isinstance(value, dict) and all(_fits(entry, item) for entry in value.values())
        elif member is float:
            fits = type(value) in (int, float)
        else:
            fits = type(value) is member
        if fits:
            return True
    return False


def _describe(kind: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    parts = []
    for member in _members(kind):
        if typing.get_origin(member) is Literal:
            parts.append("one of " + ", ".join(map(repr, typing.get_args(member))))
        elif typing.get_origin(member) is list:
            of_texts = typing.get_args(member) == (str,)
            plain = "a list of texts" if of_texts else "a list of numbers"
            parts.append("a list of tables" if _item_of(member) else plain)
        elif typing.get_origin(member) is dict:
            parts.append("a table of numbers")
        elif member is not type(None):
            parts.append(names.get(member, str(member)))
    return " or ".join(parts)
