"""YAML files with the line of every key, so that a problem can say where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.compose.folders import ConfigFolders, shown_path
from llmtrain.schema.load import suggest
from llmtrain.utils.errors import ConfigError, Problem

NULL = "null"
"""Choice of a group that is left out."""


@dataclass(frozen=True)
class Leaf:
    """One value of a file: dotted key, value, and the line of the key (from 1)."""

    key: str
    value: Any
    line: int


@dataclass
class YamlFile:
    """A parsed file: its values, and the entries of its `defaults` list with their lines."""

    path: Path
    leaves: list[Leaf] = field(default_factory=list)
    defaults: list[tuple[Any, int]] = field(default_factory=list)

    def where(self, line: int) -> str:
        """`file:line` for messages."""
        return f"{shown_path(self.path)}:{line}"

    def get(self, key: str) -> Leaf | None:
        """The value of a dotted key."""
        return next((leaf for leaf in self.leaves if leaf.key == key), None)


def yaml_problem(error: Any, path: Path) -> Problem:
    """What a YAML parser complains about, in three lines."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{shown_path(path)}:{mark.line + 1}" if mark else shown_path(path)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Problem(f"not valid YAML: {what}", where, "check indentation, colons and quotes on this line")


def read_yaml(path: Path) -> YamlFile:
    """Read a file with the loader that Hydra uses, so that both see the same values.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is no mapping.
    """
    import yaml
    from omegaconf._utils import get_yaml_loader

    try:
        loader = get_yaml_loader()(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return YamlFile(path)
        loader.construct_document(node)  # complains about keys that occur twice
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(yaml_problem(error, path)) from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path.name} must hold keys with values", shown_path(path), "write `key: value`")
    file = YamlFile(path)
    _collect(loader, node, "", file)
    return file


def _collect(loader: Any, node: Any, prefix: str, file: YamlFile) -> None:
    """Add the values below a mapping node to `file`."""
    import yaml

    loader.flatten_mapping(node)
    for key_node, value_node in node.value:
        key = f"{prefix}{loader.construct_object(key_node, deep=True)}"
        line = key_node.start_mark.line + 1
        if key == "defaults" and isinstance(value_node, yaml.SequenceNode):
            for item in value_node.value:
                file.defaults.append((loader.construct_object(item, deep=True), item.start_mark.line + 1))
        elif isinstance(value_node, yaml.MappingNode) and value_node.value:
            _collect(loader, value_node, f"{key}.", file)
        else:
            file.leaves.append(Leaf(key, loader.construct_object(value_node, deep=True), line))


def check_defaults(file: YamlFile, folder: str, folders: ConfigFolders) -> list[Problem]:
    """Problems of a `defaults` list: groups and choices that do not exist.

    Args:
        file: the file.
        folder: group folder that the file lies in, such as `model/gpt`; "" for a root.
        folders: where choices are looked up.
    """
    problems: list[Problem] = []
    for entry, line in file.defaults:
        for group, choice in _choices_of(entry):
            path = f"{group}/{choice}" if group else choice
            if not path.startswith("/"):
                path = f"{folder}/{path}"
            path = path.strip("/")
            exists = folders.find(path) is not None or (
                choice == NULL and path[: -len(NULL) - 1] in folders.groups()
            )
            if not exists and "${" not in path:
                problems.append(_unknown_default(path, folders, file.where(line)))
    return problems


def _choices_of(entry: Any) -> list[tuple[str, str]]:
    """(group, choice) pairs of one entry of a defaults list."""
    if isinstance(entry, str):
        return [] if entry == "_self_" else [("", entry.partition("@")[0])]
    pairs: list[tuple[str, str]] = []
    if isinstance(entry, dict):
        for key, value in entry.items():
            words = str(key).split()
            if "optional" in words[:-1]:
                continue
            choices = value if isinstance(value, list) else [value]
            pairs += [
                (words[-1].partition("@")[0], NULL if choice is None else str(choice)) for choice in choices
            ]
    return pairs


def _unknown_default(path: str, folders: ConfigFolders, where: str) -> Problem:
    """The problem of a defaults entry whose file does not exist."""
    groups = folders.groups()
    group, _, choice = path.partition("/")
    if group in groups:
        return Problem(f"there is no {group} {choice!r}", where, suggest(choice, groups[group]))
    return Problem(f"there is no config group {group!r}", where, suggest(group, groups))
