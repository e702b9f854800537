"""From merged plain data to the typed configuration: interpolations, secrets, paths, defaults."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmtrain.schema.data import INHERITED
from llmtrain.schema.load import build, dump, flatten
from llmtrain.schema.registry import Registry
from llmtrain.utils.errors import ConfigError, Problem
from llmtrain.utils.hub import hub_name

LENGTHS = ("train.steps", "train.epochs", "train.tokens")
"""Ways to say how long a training is; one of them at most."""

PATHS = (
    "run.dir",
    "run.plugins",
    "tokenizer.path",
    "data.paths",
    "data.validation_paths",
    "objective.word_list",
    "task.folder",
    "paths",
    "input",
    "target",
    "output",
    "prompts",
)
"""Keys that hold paths or patterns of files."""

MODELS = ("init_from", "source", "base")
"""Keys that hold the path of a model, or its name on the Hugging Face hub."""

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Environment variables with such a name are written nowhere."""

ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z0-9_]+)")


def is_secret(variable: str) -> bool:
    """Whether the name of an environment variable tells that its value is a secret."""
    return SECRET_NAME.search(variable) is not None


def resolve(
    schema: type, data: dict[str, Any], registry: Registry, given: list[str], origins: Mapping[str, str]
) -> tuple[Any, dict[str, Any]]:
    """Make the dataclass of merged data.

    Args:
        schema: the verb's dataclass.
        data: nested plain data, interpolations as text.
        registry: for the kinds of groups.
        given: keys that the command line sets.
        origins: where each key was set, for messages.

    Returns:
        the dataclass, and plain data for printing, in which `${oc.env:...}` stands as it was written.

    Raises:
        ConfigError: with every value that is out of range or cannot be resolved.
    """
    raw = {key: value for key, value in flatten(data).items() if "${" in str(value)}
    plain, problems = _interpolate(copy.deepcopy(data), origins)
    hidden = _environment_keys(raw, flatten(plain))
    problems += _secrets(raw, hidden, origins)
    for key in hidden:
        if key.startswith("extra."):
            set_key(plain, key, raw[key])
    _one_length(plain, given)
    _inherit(plain)
    _absolute_paths(plain)
    config: Any = None
    try:
        config = build(schema, plain, registry)
    except ConfigError as error:
        problems += locate(error.problems, origins)
    if problems:
        raise ConfigError(problems)
    shown = dump(config)
    for key in hidden:
        set_key(shown, key, raw[key])
    return config, shown


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested dicts."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(data.get(section), dict):
            data[section] = {}
        data = data[section]
    data[last] = value


def locate(problems: list[Problem], origins: Mapping[str, str]) -> list[Problem]:
    """Say where a key was set, in problems that only name the key."""
    located = []
    for problem in problems:
        key = problem.where if problem.where in origins else problem.what.split()[0]
        located.append(replace(problem, where=origins.get(key, problem.where)))
    return located


def _interpolate(data: dict[str, Any], origins: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """Replace `${...}` by what it stands for; what cannot be resolved is left out, and reported."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    problems: list[Problem] = []
    while True:
        try:
            plain = OmegaConf.to_container(OmegaConf.create(data), resolve=True, throw_on_missing=True)
            assert isinstance(plain, dict)
            return {str(key): value for key, value in plain.items()}, problems
        except OmegaConfBaseException as error:
            key = re.sub(r"\[\d+\]$", "", str(getattr(error, "full_key", "") or ""))
            what = str(error).splitlines()[0].rstrip(".").removeprefix("KeyError raised while resolving ")
            fix = f"set {key or 'it'}, or write \\${{ for the characters themselves"
            problems.append(
                Problem(f"{key or 'a value'} cannot be resolved: {what}", origins.get(key, key), fix)
            )
            if key not in flatten(data):
                raise ConfigError(problems) from None
            _remove(data, key)


def _remove(data: dict[str, Any], key: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        data = data[section]
    del data[last]


def _environment_keys(raw: Mapping[str, Any], plain: Mapping[str, Any]) -> list[str]:
    """Keys whose value comes from the environment, by itself or through another key."""
    direct = [key for key, value in raw.items() if ENVIRONMENT.search(str(value)) and key in plain]
    values = [str(plain[key]) for key in direct if plain[key] not in (None, "")]
    return [key for key in raw if key in direct or any(value in str(plain.get(key)) for value in values)]


def _secrets(raw: Mapping[str, Any], hidden: list[str], origins: Mapping[str, str]) -> list[Problem]:
    """Secrets that would be written to the run's files; those below `extra` are not."""
    return [
        Problem(
            f"{key} would write the secret {name} into the run's files",
            origins.get(key, key),
            "secrets are read from the environment by what needs them; leave the key out",
        )
        for key in hidden
        for name in ENVIRONMENT.findall(str(raw[key]))
        if is_secret(name) and not key.startswith("extra.")
    ]


def _one_length(data: dict[str, Any], given: list[str]) -> None:
    """The length on the command line replaces another one from a file."""
    flat = flatten(data)
    there = [key for key in LENGTHS if flat.get(key) is not None]
    asked = [key for key in there if key in given]
    if len(there) > 1 and len(asked) == 1:
        for key in set(there) - set(asked):
            set_key(data, key, None)


def _inherit(data: dict[str, Any]) -> None:
    """Give to each text of a mixture what is set for the mixture and not for the text itself."""
    mixture = data.get("data")
    if not isinstance(mixture, dict):
        return
    shared = {key: value for key, value in flatten(mixture).items() if key.split(".")[0] in INHERITED}
    for section in ("sources", "validation"):
        texts = mixture.get(section)
        for text in texts.values() if isinstance(texts, dict) else ():
            own = flatten(text) if isinstance(text, dict) else {}
            for key, value in shared.items():
                said = any(f"{key}.".startswith(f"{one}.") for one in own)
                if isinstance(text, dict) and not said:
                    set_key(text, key, copy.deepcopy(value))


def _absolute_paths(data: dict[str, Any]) -> None:
    """Make relative paths absolute, so that a run does not depend on where it was started from."""
    flat = flatten(data)
    in_folder = ("task.paths", "task.validation_paths")  # of fine-tuning: they start from task.folder
    for key in PATHS if flat.get("task.folder") else (*PATHS, *in_folder):
        value = flat.get(key)
        if isinstance(value, str):
            set_key(data, key, absolute(value))
        elif isinstance(value, list):
            set_key(data, key, [absolute(item) if isinstance(item, str) else item for item in value])
    for key in MODELS:
        value = flat.get(key)
        if isinstance(value, str) and hub_name(value) is None:
            set_key(data, key, absolute(value))
    for key, value in flat.items():
        section, _, last = key.rpartition(".")
        if key.startswith(("data.sources.", "data.validation.")) and last in ("paths", "validation_paths"):
            set_key(data, key, [absolute(item) if isinstance(item, str) else item for item in value])
        is_name = last == "name" and section.partition(".")[0] == "data" and isinstance(value, str)
        if is_name and os.path.isdir(os.path.expanduser(value)):
            set_key(data, key, absolute(value))


def absolute(path: str) -> str:
    """An absolute path; URLs, empty texts and `-` (standard input) stay."""
    return path if path in ("", "-") or "://" in path else os.path.abspath(os.path.expanduser(path))
