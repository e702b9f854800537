"""`llmtrain configs ls | cat | cp | check`: the YAML files that groups choose from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from llmtrain.command.help import about_schema
from llmtrain.command.style import Style, first_sentence
from llmtrain.compose.folders import EXPERIMENT, ConfigFolders, shown_path
from llmtrain.compose.layout import Sources, check_files, hydra, open_sources, read_layout
from llmtrain.compose.overrides import Override
from llmtrain.compose.yaml_files import read_yaml
from llmtrain.schema.load import suggest
from llmtrain.schema.plugins import registry_with
from llmtrain.schema.registry import Registry
from llmtrain.schema.roots import ROOTS
from llmtrain.utils.errors import ConfigError, Problem

ACTIONS = ("ls", "cat", "cp", "check")


def configs(words: Sequence[str], config_dir: str | None, style: Style) -> str:
    """Do what `llmtrain configs WORDS` asks for.

    Returns:
        what is to be printed.

    Raises:
        ConfigError: wrong words, or problems found by `check`.
    """
    action, arguments = (words[0], list(words[1:])) if words else ("ls", [])
    wanted = {"ls": (0, 1), "cat": (1, 1), "cp": (2, 2), "check": (0, 0)}
    if action not in wanted:
        raise ConfigError(f"there is no `configs {action}`", "command line", suggest(action, ACTIONS))
    least, most = wanted[action]
    if not least <= len(arguments) <= most:
        usage = {"ls": "[GROUP]", "cat": "NAME", "cp": "NAME DIR", "check": "[--config-dir DIR]"}[action]
        raise ConfigError(
            f"wrong words after `configs {action}`", "command line", f"write configs {action} {usage}"
        )
    if action == "check":
        return check(config_dir)
    folders = ConfigFolders.make(config_dir)
    if action == "ls":
        return listing(folders, arguments[0] if arguments else None, style)
    path = folders.require(_name(arguments[0]), "command line")
    if action == "cat":
        return f"{style.dim(f'# {shown_path(path)}')}\n{path.read_text(encoding='utf-8').rstrip()}"
    return copy(folders, path, _name(arguments[0]), Path(arguments[1]))


def _name(word: str) -> str:
    """`model/gpt/small`, however it was written."""
    return word.replace("=", "/", 1).removesuffix(".yaml").strip("/")


def about(path: Path, group: str, registry: Registry) -> str:
    """The first sentence of the comment at the head of a file, else of its schema's docstring."""
    words: list[str] = []
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            words.append(line.lstrip("# ").strip())
    if words:
        return first_sentence(" ".join(words))
    kind = re.search(r"^kind:\s*(\w+)", text, re.MULTILINE)
    schema = registry.groups.get(group, {}).get(kind[1]) if kind else None
    return about_schema(schema) if schema is not None else ""


def listing(folders: ConfigFolders, group: str | None, style: Style) -> str:
    """All groups with their choices, or one with what each choice is."""
    groups = folders.groups()
    if group is not None and group.strip("/") not in groups:
        raise ConfigError(f"there is no config group {group!r}", "command line", suggest(group, groups))
    registry = registry_with([])
    lines: list[str] = []
    for name in [group.strip("/")] if group else list(groups):
        lines += [style.bold(name)] if not group else []
        rows = [
            (f"{name}={choice}", about(path, name, registry))
            for choice in groups[name]
            if (path := folders.find(f"{name}/{choice}")) is not None
        ]
        lines.append(style.entries(rows, indent=0 if group else 2))
    return "\n".join(lines)


def copy(folders: ConfigFolders, path: Path, name: str, target: Path) -> str:
    """Copy a file into a user's folder, keeping its group folders.

    Raises:
        ConfigError: the file is there already, or cannot be written.
    """
    destination = target.expanduser() / f"{name}.yaml"
    if destination.exists():
        raise ConfigError(
            f"{destination} is there already", "command line", "remove it, or copy to another folder"
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, destination)
    except OSError as error:
        raise ConfigError(
            f"cannot write {destination}: {error.strerror}", "command line", "give another folder"
        ) from error
    return f"{destination}\nuse it with: --config-dir {target}"


def check(config_dir: str | None) -> str:
    """Check every YAML file of all folders with every verb that it fits.

    Raises:
        ConfigError: with every problem.
    """
    problems: list[Problem] = []
    checked: set[Path] = set()
    for verb in ROOTS:
        sources = open_sources(verb, [], config_dir)
        names = sources.folders.names()
        with hydra(sources.folders):
            targets: list[list[Override]] = [[]]
            for group, choices in sources.groups().items():
                targets += [[_choice(group, choice)] for choice in choices]
            for target in targets:
                problems += _check_target(sources, target)
                checked |= {names[f"{override.key}/{override.values[0]}"] for override in target}
        checked |= {path for name, path in names.items() if name == verb}
    known = [*sources.folders.groups(), *ROOTS]
    for name, path in names.items():
        if path not in checked:
            problems.append(
                _unused(name, path, [group for group in known if group != name.partition("/")[0]])
            )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return f"{len(names)} files are fine"


def _choice(group: str, choice: str) -> Override:
    text = f"{group}={choice}"
    return Override(text, group, (choice,), (text,), choice)


def _check_target(sources: Sources, target: list[Override]) -> list[Problem]:
    """Problems of one root with one choice."""
    layout, problems = read_layout(sources, target)
    if layout is not None:
        problems += check_files(sources, layout)
    return problems


def _unused(name: str, path: Path, known: list[str]) -> Problem:
    """A file that no verb can choose; its YAML may be broken besides."""
    try:
        read_yaml(path)
    except ConfigError as error:
        return error.problems[0]
    group, slash, _ = name.partition("/")
    what = f"no verb has a group {group!r}" if slash else f"{name!r} is no verb"
    known = sorted({*known, EXPERIMENT} - {group})
    return Problem(f"this file is never used: {what}", shown_path(path), suggest(group, known))
