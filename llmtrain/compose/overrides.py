"""Overrides of the command line: `key=value`, `group=choice`, and with -m several values of each.

The grammar is Hydra's; each argument is parsed by itself, so that every wrong one is reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmtrain.compose.keys import KeySpace, suggest_choice
from llmtrain.schema.load import strip_optional
from llmtrain.utils.errors import Problem


@dataclass(frozen=True)
class Override:
    """One parsed argument.

    Attributes:
        text: as it was typed.
        key: dotted key, or the name of a group.
        values: its value; several with a sweep.
        texts: `key=value` of each value, for the command line of a trial.
        raw: the text after the first `=`.
        sweep: whether the value is a sweep, even over a single value.
    """

    text: str
    key: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]
    raw: str
    sweep: bool = False

    @property
    def where(self) -> str:
        """For messages."""
        return f"command line: {self.text}"

    def literal(self) -> Override:
        """The override with its text, as it stands, for a value."""
        return replace(self, values=(self.raw,), texts=(self.text,), sweep=False)

    def pick(self, index: int) -> Override:
        """The override of one value of a sweep."""
        if not self.sweep:
            return self
        text = self.texts[index]
        return Override(text, self.key, (self.values[index],), (text,), text.partition("=")[2])


def parse_overrides(
    arguments: Sequence[str], groups: Mapping[str, list[str]]
) -> tuple[list[Override], list[Problem]]:
    """Parse every argument.

    Args:
        arguments: `key=value` texts.
        groups: choices of each group, for `model=glob(gpt/*)`.

    Returns:
        what could be read, and a problem for each argument that is of a form that is refused.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    overrides: list[Override] = []
    problems: list[Problem] = []
    for text in arguments:
        if problem := _refused(text):
            problems.append(problem)
            continue
        key, _, raw = text.partition("=")
        try:
            overrides.append(_parse(parser, text, raw, groups))
        except HydraException as error:
            # whether the text may be taken as it stands depends on the key's type: see `settle`
            unreadable = Unreadable(str(error))
            overrides.append(Override(text, key.lstrip("+"), (unreadable,), (text,), raw))
    return overrides, problems


def _parse(parser: Any, text: str, raw: str, groups: Mapping[str, list[str]]) -> Override:
    """Parse one argument with Hydra's parser, the values of a sweep one by one."""
    from hydra.core.override_parser.types import Glob, Transformer
    from hydra.errors import HydraException

    parsed = parser.parse_override(text)
    key = parsed.key_or_group
    if not parsed.is_sweep_override():
        return Override(text, key, (parsed.value(),), (text,), raw)
    if isinstance(parsed.value(), Glob):
        elements: list[Any] = parsed.value().filter(groups.get(key, []))
    else:
        elements = list(parsed.sweep_iterator())
    if not elements:
        raise HydraException("the sweep has no values")
    texts = tuple(f"{key}={Transformer.str(element)}" for element in elements)
    values = tuple(parser.parse_override(single).value() for single in texts)
    return Override(text, key, values, texts, raw, sweep=True)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that is not in Hydra's grammar."""

    message: str


def _refused(text: str) -> Problem | None:
    """The forms of an argument that are not for users of llmtrain."""
    where = f"command line: {text}"
    key, equals, value = text.partition("=")
    bare = key.lstrip("+~")
    if key.startswith("~"):
        fix = f"set it to null ({bare}=null), or to another choice"
        return Problem("keys cannot be removed", where, fix)
    if bare.split(".")[0].split("/")[0] == "hydra":
        fix = "run.dir=... chooses the directory, -m sweeps, --config-dir adds a folder of configs"
        return Problem("settings of Hydra itself cannot be changed", where, fix)
    if not equals:
        return Problem(f"{text!r} is no key=value", where, f"write {bare}=VALUE")
    if key.startswith("+") and not bare.startswith("extra."):
        fix = f"keys of llmtrain take no +; your own go below extra: +extra.{bare}={value}"
        return Problem("`+` adds keys that llmtrain would never read", where, fix)
    if "@" in bare:
        return Problem("packages cannot be chosen here", where, f"write {bare.partition('@')[0]}={value}")
    if "/" in bare:
        group, _, folder = bare.partition("/")
        return Problem(f"{bare!r} is no key", where, f"write {group}={folder}/{value}")
    return None


def settle(override: Override, space: KeySpace, multirun: bool) -> tuple[Override, list[Problem]]:
    """Read a value in the light of its key's type, and check it.

    A text key takes what is not in the grammar as it stands (`prompt=Hello, world!`); a list takes a
    single value as its only element (`data.paths=book (1).txt`).

    Returns:
        the override with its values as they are meant, and its problems.
    """
    hint = strip_optional(space.hint(override.key))[0]
    known = space.has(override.key)
    if override.sweep and not multirun:
        prose = hint is str and " " in override.raw.strip()
        if not prose:
            return override, [*_unknown(override, space, known), _sweep_without_m(override, hint)]
        override = override.literal()
    first = override.values[0] if override.values else None
    if isinstance(first, Unreadable):
        as_it_stands = (
            hint is str
            or space.is_free(override.key)
            or (_is_list(hint) and not override.raw.startswith("["))
        )
        if not (known and as_it_stands):
            return override, _unknown(override, space, known) or [_unreadable(override, first)]
        override = override.literal()
    values = tuple(_as_meant(value, override, hint) for value in override.values)
    override = replace(override, values=values)
    if override.key.endswith(".kind") and override.key in space.hints:
        group = override.key.removesuffix(".kind")
        fix = f"choose with {group}=..., see: llmtrain configs ls {group}"
        return override, [Problem(f"{override.key} cannot be set by itself", override.where, fix)]
    problems: list[Problem] = []
    for value in values:
        problems += space.check(override.key, value, override.where)
    return override, list(dict.fromkeys(problems))


def _as_meant(value: Any, override: Override, hint: Any) -> Any:
    """A value of a text key keeps its spelling (007, 1e3); a list key takes one value as a list."""
    if hint is str and value is not None and not isinstance(value, str | dict | list) and not override.sweep:
        return override.raw.strip()
    if _is_list(hint) and isinstance(value, str | int | float) and not isinstance(value, bool):
        return [value]
    return value


def _is_list(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is list


def _unknown(override: Override, space: KeySpace, known: bool) -> list[Problem]:
    """The problem of an unknown key, if it is one."""
    return [] if known else space.check(override.key, None, override.where)


def _sweep_without_m(override: Override, hint: Any) -> Problem:
    """Several values, but no -m."""
    if _is_list(hint):
        fix = f"write '{override.key}=[{override.raw}]'"
    else:
        fix = "add -m to run each"
        fix += f", or quote a text with commas: '{override.key}=\"{override.raw}\"'" if hint is str else ""
    return Problem(f"{override.key} has several values", override.where, fix)


def _unreadable(override: Override, value: Unreadable) -> Problem:
    """A value that is not in the grammar."""
    reason = value.message.splitlines()[0] if value.message else "syntax error"
    fix = f"quote texts with special characters, for the shell too: '{override.key}=[\"a (1).txt\"]'"
    return Problem(f"cannot read the value of {override.key}: {reason}", override.where, fix)


def check_choices(
    override: Override, choices: Iterable[str], optional: bool, multirun: bool
) -> list[Problem]:
    """Problems of `group=choice`."""
    group, known = override.key, list(choices)
    if override.sweep and not multirun:
        return [Problem(f"{group} has several choices", override.where, "give one, or add -m to run each")]
    problems: list[Problem] = []
    for value in override.values:
        if isinstance(value, Unreadable) or not isinstance(value, str | int | float | None):
            problems.append(
                Problem(f"{group} takes one choice", override.where, suggest_choice("", group, known))
            )
        elif value is None and not optional:
            fix = suggest_choice("", group, known)
            problems.append(Problem(f"{group} cannot be null", override.where, fix))
        elif value is not None and str(value) not in known:
            fix = suggest_choice(str(value), group, known)
            problems.append(Problem(f"there is no {group} {str(value)!r}", override.where, fix))
    return problems


def trials(overrides: Sequence[Override]) -> list[list[Override]]:
    """The cross product of all sweeps, the last key running fastest."""
    ranges = [range(len(override.values)) for override in overrides]
    return [
        [override.pick(index) for override, index in zip(overrides, picked, strict=True)]
        for picked in itertools.product(*ranges)
    ]


def is_choice(override: Override, groups: Iterable[str]) -> bool:
    """Whether an override chooses a file of a group."""
    return override.key in groups
