"""From a verb and the words of the command line to typed configurations, without torch.

Every override and every YAML file that takes part is checked against the schema, and all problems are
reported at once; Hydra composes only what is known to be good.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtrain.compose.folders import EXPERIMENT
from llmtrain.compose.keys import KeySpace
from llmtrain.compose.layout import (
    Layout,
    Sources,
    check_files,
    hydra,
    open_sources,
    read_layout,
)
from llmtrain.compose.overrides import Override, check_choices, is_choice, parse_overrides, settle, trials
from llmtrain.compose.resolve import locate, resolve, set_key
from llmtrain.schema.load import flatten
from llmtrain.schema.validate import validate
from llmtrain.utils.errors import ConfigError, Problem


@dataclass(frozen=True)
class Composed:
    """One configuration that has passed every check.

    Attributes:
        verb: what it is for.
        config: the verb's dataclass, with absolute paths.
        choices: the file of each group, such as `{"model": "gpt/tiny"}`.
        overrides: the words of the command line that gave it.
        shown: plain data of `config` as it may be printed: values of `${oc.env:...}` are left out.
    """

    verb: str
    config: Any
    choices: Mapping[str, str]
    overrides: tuple[str, ...]
    shown: dict[str, Any]


def compose(
    verb: str, arguments: Sequence[str], config_dir: str | None = None, multirun: bool = False
) -> list[Composed]:
    """Compose the configurations that the command line asks for: one, or with `multirun` all trials.

    Raises:
        ConfigError: with every problem of the command line, of the YAML files and of the result.
    """
    sources = open_sources(verb, arguments, config_dir)
    composed: list[Composed] = []
    overrides, problems = parse_overrides(arguments, sources.groups())
    with hydra(sources.folders):
        checked = check_arguments(sources, overrides, multirun)
        problems += checked.problems
        for trial in trials(checked.good):
            if problems and all(is_choice(override, sources.groups()) for override in trial):
                break  # all that would be told now are problems of values that the command line gives
            try:
                composed.append(_compose_one(sources, checked, trial))
            except ConfigError as error:
                # beside other problems only what is certain: a wrong word may have been the cure
                certain = [one for one in error.problems if not problems or one.where in _places(trial)]
                problems += certain
    if problems:
        raise ConfigError(in_order(problems, arguments))
    return composed


def _places(trial: Sequence[Override]) -> set[str]:
    return {override.where for override in trial}


def in_order(problems: Sequence[Problem], arguments: Sequence[str]) -> list[Problem]:
    """Problems once each: those of the command line in its order, then those of files."""
    order = {f"command line: {argument}": index for index, argument in reversed(list(enumerate(arguments)))}
    return sorted(dict.fromkeys(problems), key=lambda problem: order.get(problem.where, len(order)))


@dataclass
class Checked:
    """What is left of the command line after every argument was checked by itself.

    Attributes:
        good: overrides without problems, their values as they are meant.
        problems: those of all others, and of the YAML files.
        layouts: the files for each combination of choices, by the words that choose it.
    """

    good: list[Override] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    layouts: dict[tuple[str, ...], Layout] = field(default_factory=dict)


def check_arguments(sources: Sources, overrides: Sequence[Override], multirun: bool) -> Checked:
    """Check choices, the files that they bring in, and all values."""
    groups = sources.groups()
    checked = Checked()
    wrong: set[str] = set()
    settled: dict[int, Override] = {}
    choices: list[Override] = []
    for index, override in enumerate(overrides):
        if is_choice(override, groups):
            found = check_choices(override, groups[override.key], sources.optional(override.key), multirun)
            checked.problems += found
            if found:
                wrong.add(override.key)
            else:
                choices.append(override)
                settled[index] = override
    bad: set[int] = set()
    for trial in trials(choices):
        layout, found = read_layout(sources, trial)
        if layout is not None:
            found += check_files(sources, layout)
        checked.problems += found
        if layout is not None and not found:
            checked.layouts[_words(trial)] = layout
        kinds = {} if layout is None else layout.kinds
        space = KeySpace.make(sources.schema, sources.registry, _certain_kinds(kinds, trial, wrong))
        actual = KeySpace.make(sources.schema, sources.registry, kinds) if wrong else space
        for index, override in enumerate(overrides):
            if not is_choice(override, groups):
                settled[index], found = settle(override, space, multirun)
                checked.problems += found
                # what was meant for the right choice cannot be composed with another
                misplaced = override.key.partition(".")[0] in wrong or not actual.has(override.key)
                bad |= {index} if found or misplaced else set()
    checked.good = [settled[index] for index in sorted(settled.keys() - bad)]
    return checked


def _words(overrides: Sequence[Override]) -> tuple[str, ...]:
    return tuple(override.text for override in overrides)


def _certain_kinds(kinds: Mapping[str, Any], trial: Sequence[Override], wrong: set[str]) -> dict[str, Any]:
    """Kinds that do not depend on a wrong choice; of other groups, keys of every kind are accepted."""
    chosen = {override.key for override in trial}
    return {
        group: kind
        for group, kind in kinds.items()
        if group not in wrong and (EXPERIMENT not in wrong or group in chosen)
    }


def _compose_one(sources: Sources, checked: Checked, trial: Sequence[Override]) -> Composed:
    """Compose one trial, whose parts have been checked.

    Raises:
        ConfigError: a value is out of range, an interpolation fails, or settings contradict each other.
    """
    groups = sources.groups()
    choices = [override for override in trial if is_choice(override, groups)]
    given = [override for override in trial if not is_choice(override, groups)]
    layout = checked.layouts.get(_words(choices))
    if layout is None:
        raise ConfigError(checked.problems)
    plain = copy.deepcopy(layout.values)
    for override in given:
        for key, value in flatten({override.key: override.values[0]}).items():
            set_key(plain, key, copy.deepcopy(value))
    origins = layout.origins() | {override.key: override.where for override in given}
    keys = [override.key for override in given]
    config, shown = resolve(sources.schema, plain, sources.registry, keys, origins)
    # after a wrong argument, contradictions may come from its absence
    if not checked.problems and (problems := validate(sources.verb, config)):
        raise ConfigError(locate(problems, origins))
    return Composed(sources.verb, config, layout.choices, _words(trial), shown)
