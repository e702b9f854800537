"""Plain data <-> dataclasses: find every problem, build, dump.

The rules of a value's type are here and nowhere else: the checks of the command line, of YAML files and
of a run's stored `config.yaml` all use them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from llmtrain.schema.registry import Registry
from llmtrain.utils.errors import ConfigError, Problem

DECIDED = {"decided": True}
"""Metadata of a field that a run fills in by itself and stores with its config."""


def suggest(word: str, known: Iterable[str]) -> str:
    """ "did you mean ...?", or the list of what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(known)


@functools.cache  # annotations are evaluated anew each time that they are asked for
def field_types(schema: type) -> Mapping[str, Any]:
    """Resolved type of every field of a dataclass, in order."""
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


@functools.cache
def given_types(schema: type) -> Mapping[str, Any]:
    """Resolved type of every field that a user may set: not of those marked as `DECIDED`."""
    decided = {field.name for field in dataclasses.fields(schema) if field.metadata == DECIDED}
    return {name: hint for name, hint in field_types(schema).items() if name not in decided}


def strip_optional(hint: Any) -> tuple[Any, bool]:
    """``X | None`` -> (X, True); anything else -> (itself, False)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        assert len(inner) == 1, f"a field has one type, optional at most: {hint}"
        return inner[0], True
    return hint, False


def is_group(name: str, hint: Any, registry: Registry) -> bool:
    """Whether a field is a config group whose choices differ in shape."""
    return name in registry.groups and dataclasses.is_dataclass(strip_optional(hint)[0])


def named_sections(hint: Any) -> type | None:
    """The dataclass of `dict[str, dataclass]`: sections under names that the user gives; else None."""
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(inner := typing.get_args(hint)[1]):
        return typing.cast(type, inner)
    return None


def kinds_of_named(schema: type, registry: Registry) -> dict[str, type]:
    """What such a section may be, by its `kind`: the choices of the config group that the dataclass belongs
    to, but for those that have named sections of this dataclass themselves; the first stands for all that do
    not say their kind."""
    found: dict[str, type] = {}
    for kinds in registry.groups.values():
        for kind, one in kinds.items():
            sections = [named_sections(hint) for hint in field_types(one).values()]
            if issubclass(one, schema) and schema not in sections:
                found[kind] = one
    return found or {"": schema}


def schema_of_named(schema: type, data: Any, registry: Registry) -> type | None:
    """The dataclass of one such section; None where there is no such kind."""
    choices = kinds_of_named(schema, registry)
    first = next(iter(choices))
    return choices.get(data.get("kind", first) if isinstance(data, dict) else first)


def schema_of_kind(group: str, kind: Any, registry: Registry) -> type | None:
    """The dataclass behind a group's `kind`, or None where there is none."""
    return registry.groups[group].get(kind) if isinstance(kind, str) else None


def type_name(hint: Any) -> str:
    """How a type is called in a message to a user."""
    hint, optional = strip_optional(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        name = "one of " + ", ".join(str(member.value) for member in hint)
    elif hint in (int, float, bool, str):
        name = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
    elif typing.get_origin(hint) is list:
        name = f"a list of {type_name(typing.get_args(hint)[0]).removeprefix('a ')}s"
    else:
        name = "a section with keys"
    return f"{name}, or null" if optional else name


def convert(value: Any, hint: Any) -> Any:
    """Turn a plain value into a field's type.

    Raises:
        ValueError: it does not fit.
    """
    hint, optional = strip_optional(hint)
    if value is None:
        if optional or hint is Any:
            return None
        raise ValueError("is null")
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin is list:
        if not isinstance(value, list):
            raise ValueError("is not a list")
        return [convert(item, typing.get_args(hint)[0]) for item in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError("is not a section")
        return dict(value)
    if issubclass(hint, Enum):
        return hint(value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
        return int(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"is {value!r}")


def check_value(key: str, value: Any, hint: Any, where: str) -> list[Problem]:
    """Problems of one leaf value; texts with `${...}` are looked at after they are resolved."""
    if isinstance(value, str) and "${" in value:
        return []
    try:
        convert(value, hint)
    except (ValueError, TypeError, OverflowError):
        bare = strip_optional(hint)[0]
        fix = f"give {type_name(hint)}"
        if isinstance(bare, type) and issubclass(bare, Enum):
            fix = suggest(str(value), [str(member.value) for member in bare])
        return [Problem(f"{key} must be {type_name(hint)}, not {value!r}", where, fix)]
    return []


def check_tree(
    schema: type, data: Any, registry: Registry, where: str, prefix: str = "", partial: bool = False
) -> list[Problem]:
    """Every problem of plain data against a dataclass: unknown keys, wrong types, unknown kinds.

    Args:
        schema: the dataclass.
        data: nested dicts and plain values.
        registry: for the `kind` of groups.
        where: file name or "command line", for the messages.
        prefix: dotted path of `data`, for the messages.
        partial: a group without `kind` is not complained about (its kind comes from elsewhere).
    """
    if not isinstance(data, dict):
        return [Problem(f"{prefix or 'the config'} must be a section with keys, not {data!r}", where)]
    problems: list[Problem] = []
    fields = field_types(schema)
    for name, value in data.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name not in fields:
            problems.append(Problem(f"unknown key {key!r}", where, suggest(str(name), fields)))
            continue
        hint = fields[name]
        bare, optional = strip_optional(hint)
        if (section := named_sections(bare)) is not None:
            problems += check_named(section, value, registry, where, key)
        elif not dataclasses.is_dataclass(bare):
            problems += check_value(key, value, hint, where)
        elif value is None and optional:
            continue
        elif is_group(name, hint, registry):
            problems += check_group(name, value, registry, where, key, partial)
        else:
            problems += check_tree(typing.cast(type, bare), value, registry, where, key, partial)
    return problems


def check_named(schema: type, data: Any, registry: Registry, where: str, prefix: str) -> list[Problem]:
    """Problems of sections under names of the user's."""
    if not isinstance(data, dict):
        return [Problem(f"{prefix} must be a section with names, not {data!r}", where)]
    problems: list[Problem] = []
    for name, value in data.items():
        key = f"{prefix}.{name}"
        inner = schema_of_named(schema, value, registry)
        if inner is not None:
            problems += check_tree(inner, value, registry, where, key)
        else:
            fix = suggest(str(value["kind"]), kinds_of_named(schema, registry))
            problems.append(Problem(f"{key}.kind is {value['kind']!r}, which there is not", where, fix))
    return problems


def check_group(
    group: str, data: Any, registry: Registry, where: str, prefix: str, partial: bool = False
) -> list[Problem]:
    """Problems of the data of one config group, against the dataclass of its `kind`."""
    if not isinstance(data, dict):
        return [Problem(f"{prefix} must be a section with keys, not {data!r}", where)]
    kind = data.get("kind")
    schema = schema_of_kind(group, kind, registry)
    if schema is not None:
        return check_tree(schema, data, registry, where, prefix, partial)
    if kind is None and partial:
        return []
    if kind is None:  # keys of a group that nothing is chosen of by default
        given = ", ".join(f"{prefix}.{key}" for key in data)
        choices = " or ".join(f"{group}={one}" for one in registry.groups[group])
        return [Problem(f"{given} is given, but no {group} is chosen", where, f"give {choices} too")]
    fix = f"{suggest(str(kind), registry.groups[group])} (that of a plugin needs run.plugins=[FOLDER])"
    return [Problem(f"{prefix}.kind is {kind!r}, which names no {group}", where, fix)]


def build(schema: type, data: dict[str, Any], registry: Registry, where: str = "config") -> Any:
    """Make the dataclass from plain data.

    Raises:
        ConfigError: with every problem that was found.
    """
    problems = check_tree(schema, data, registry, where)
    if not problems:
        instance = _construct(schema, data, registry, "", where, problems)
        if not problems:
            return instance
    raise ConfigError(problems)


def _construct(
    schema: type, data: dict[str, Any], registry: Registry, prefix: str, where: str, problems: list[Problem]
) -> Any:
    """Build depth-first; range errors of `__post_init__` are added to `problems`."""
    values: dict[str, Any] = {}
    for name, hint in field_types(schema).items():
        if name not in data:
            continue
        bare, _ = strip_optional(hint)
        value = data[name]
        key = f"{prefix}.{name}" if prefix else name
        if (section := named_sections(bare)) is not None:
            values[name] = {
                each: _construct(
                    typing.cast(type, schema_of_named(section, inner, registry)),
                    inner,
                    registry,
                    f"{key}.{each}",
                    where,
                    problems,
                )
                for each, inner in value.items()
            }
        elif value is not None and dataclasses.is_dataclass(bare):
            inner = typing.cast(type, bare)
            if is_group(name, hint, registry):
                inner = typing.cast(type, schema_of_kind(name, value["kind"], registry))
            values[name] = _construct(inner, value, registry, key, where, problems)
        else:
            values[name] = convert(value, hint)
    while True:
        try:
            return schema(**values)
        except ValueError as error:
            name, _, message = str(error).partition(": ")
            key = f"{prefix}.{name}" if prefix else name
            given = f" ({key}={values[name]})" if name in values else ""
            problems.append(Problem(f"{key} {message}{given}", where, f"change {key}"))
            if name not in values:
                return None
            del values[name]  # with its default in place the next problem of this section shows


def dump(value: Any) -> Any:
    """Dataclasses -> nested plain dicts, lists and scalars that YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: dump(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [dump(item) for item in value]
    return value


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat
