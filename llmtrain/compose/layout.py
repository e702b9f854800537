"""Which files a choice of groups brings together, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from llmtrain.compose.folders import EXPERIMENT, ConfigFolders, shown_path
from llmtrain.compose.keys import KeySpace
from llmtrain.compose.overrides import Override, parse_overrides
from llmtrain.compose.yaml_files import YamlFile, check_defaults, read_yaml, yaml_problem
from llmtrain.schema.load import check_group, given_types, strip_optional
from llmtrain.schema.plugins import config_dirs, registry_with
from llmtrain.schema.registry import Registry
from llmtrain.schema.roots import ROOTS
from llmtrain.utils.errors import ConfigError, Problem


@dataclass(frozen=True)
class Sources:
    """Where a composition takes its parts from: files, schemas, and the verb's root file."""

    verb: str
    folders: ConfigFolders
    registry: Registry
    root: YamlFile

    @property
    def schema(self) -> type:
        """The verb's dataclass."""
        return ROOTS[self.verb]

    def groups(self) -> dict[str, list[str]]:
        """Choices of each group that the verb has; experiments where its root file takes them."""
        fields = given_types(self.schema)
        return {
            group: choices
            for group, choices in self.folders.groups().items()
            if group in fields or (group == EXPERIMENT and EXPERIMENT in self.listed())
        }

    def listed(self) -> set[str]:
        """Groups in the defaults list of the root file."""
        return {str(key) for entry, _ in self.root.defaults if isinstance(entry, dict) for key in entry}

    def optional(self, group: str) -> bool:
        """Whether a group may be null."""
        return group == EXPERIMENT or strip_optional(given_types(self.schema)[group])[1]


@dataclass
class Layout:
    """What Hydra puts together for a set of choices.

    Attributes:
        files: the files that take part, in order of merging, each with the key it is placed under.
        kinds: `kind` of each group.
        choices: the file of each group.
        merge: lets Hydra put their values together; to be called once, as it uses up what it has read.
    """

    files: list[tuple[YamlFile, str]]
    kinds: dict[str, Any]
    choices: dict[str, str]
    merge: Callable[[], Any]

    @cached_property
    def values(self) -> dict[str, Any]:
        """The values of all files together, nested, interpolations as text; not to be changed.

        Raises:
            ConfigError: Hydra cannot merge them.
        """
        from omegaconf import OmegaConf

        try:
            merged = OmegaConf.to_container(self.merge(), resolve=False)
        except Exception as error:
            raise ConfigError(hydra_problem(error)) from error
        assert isinstance(merged, dict)
        return {str(key): value for key, value in merged.items()}

    def origins(self) -> dict[str, str]:
        """File and line that each key has its value from."""
        return {
            f"{package}.{leaf.key}" if package else leaf.key: file.where(leaf.line)
            for file, package in self.files
            for leaf in file.leaves
        }


def open_sources(verb: str, arguments: Sequence[str], config_dir: str | None) -> Sources:
    """Find folders, plugins and the root file.

    Raises:
        ConfigError: a folder or a plugin is missing or broken.
    """
    folders = ConfigFolders.make(config_dir)
    plugins = _plugin_folders(verb, arguments, folders)
    registry = registry_with(plugins)
    folders = ConfigFolders.make(config_dir, config_dirs(plugins))
    return Sources(verb, folders, registry, read_yaml(folders.require(verb, "configs")))


def _plugin_folders(verb: str, arguments: Sequence[str], folders: ConfigFolders) -> list[str]:
    """The value of `run.plugins`, which must be known before the schema is: from the command line, else
    from the chosen experiment, else from the root file. Wrong values are reported later, with all else."""
    given = [text for text in arguments if text.startswith("run.plugins=")]
    if given:
        overrides, _ = parse_overrides(given[-1:], {})
        return _texts(overrides[0].values[0])
    chosen = [text.partition("=")[2] for text in arguments if text.startswith(f"{EXPERIMENT}=")]
    for name in [f"{EXPERIMENT}/{choice}" for choice in chosen] + [verb]:
        path = folders.find(name)
        try:
            leaf = read_yaml(path).get("run.plugins") if path is not None else None
        except ConfigError:
            continue
        if leaf is not None:
            return _texts(leaf.value)
    return []


def _texts(value: Any) -> list[str]:
    """A list of texts, of which one may stand by itself."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


@contextmanager
def hydra(folders: ConfigFolders) -> Iterator[None]:
    """Hydra, looking for files in `folders`."""
    from hydra import initialize_config_dir
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    first, *others = map(str, folders.paths)
    with initialize_config_dir(first, version_base="1.3"):  # puts back on leaving what was there before
        if others:
            # not by hydra.searchpath: the root file may lie in any of the folders
            path = create_config_search_path(first)
            for folder in others:
                path.prepend("llmtrain", f"file://{folder}", SearchPathQuery(provider="schema"))
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2(task_name="llmtrain", config_search_path=path)
        yield


def hydra_words(sources: Sources, choices: Sequence[Override]) -> list[str]:
    """Choices as Hydra wants them: `+` for a group that the root file does not list, `~` for null."""
    defaults = {
        str(group): choice
        for entry, _ in sources.root.defaults
        if isinstance(entry, dict)
        for group, choice in entry.items()
    }
    words = []
    for override in choices:
        if override.values[0] is not None:
            words.append(f"{'' if override.key in defaults else '+'}{override.key}={override.values[0]}")
        elif defaults.get(override.key) is not None:
            words.append(f"~{override.key}")
    return words


def read_layout(sources: Sources, choices: Sequence[Override]) -> tuple[Layout | None, list[Problem]]:
    """Let Hydra work out which files take part, and read them."""
    from hydra._internal.defaults_list import create_defaults_list
    from hydra.core.global_hydra import GlobalHydra

    problems = check_defaults(sources.root, "", sources.folders)
    for override in choices:
        path = sources.folders.find(f"{override.key}/{override.values[0]}")
        try:
            if path is not None:
                file = read_yaml(path)
                folder = Path(f"{override.key}/{override.values[0]}").parent.as_posix()
                problems += check_defaults(file, folder, sources.folders)
        except ConfigError as error:
            problems += error.problems
    if problems:
        return None, problems
    loader: Any = GlobalHydra.instance().config_loader()
    try:
        # as `hydra.compose` does it, but without Hydra's settings of itself, which take longer than ours
        words, read = loader._parse_overrides_and_create_caching_repo(
            sources.verb, hydra_words(sources, choices)
        )
        defaults = create_defaults_list(read, sources.verb, words, prepend_hydra=False, skip_missing=False)
    except Exception as error:
        return None, [hydra_problem(error)]
    files: list[tuple[YamlFile, str]] = []
    for default in defaults.defaults:
        name = default.config_path or ""
        path = sources.folders.find(name)
        if path is None or name == "hydra" or name.startswith("hydra/"):
            continue
        package = default.package or ""
        if "." in package:
            parent = sources.folders.find(default.parent or "")
            entry = name.removeprefix(f"{package.partition('.')[0]}/")
            fix = f"write `- {entry}@_here_` in the defaults list"
            what = f"the keys of {name} would land below {package!r}"
            problems.append(Problem(what, shown_path(parent or path), fix))
        try:
            files.append((read_yaml(path), package))
        except ConfigError as error:
            problems += error.problems
    if problems:
        return None, problems
    kinds: dict[str, Any] = {}
    for file, package in files:
        for group in sources.registry.groups:
            leaf = (
                file.get("kind") if package == group else file.get(f"{group}.kind") if not package else None
            )
            if leaf is not None:
                kinds[group] = leaf.value
    known = defaults.overrides.known_choices
    chosen = {group: choice for group, choice in known.items() if choice and not group.startswith("hydra")}
    merge = partial(loader._compose_config_from_defaults_list, defaults.defaults, read)
    return Layout(files, kinds, chosen, merge), problems


def hydra_problem(error: Exception) -> Problem:
    """What Hydra complains about, in our form. Anything that is not a complaint is raised again."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        return yaml_problem(error, Path(mark.name if mark else ""))
    if not isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        raise error
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    place = re.match(r"In '([^']*)': ?(.*)", lines[0])
    where, what = (f"{place[1]}.yaml", place[2] or lines[min(1, len(lines) - 1)]) if place else ("", lines[0])
    return Problem(what.rstrip("."), where, "see `llmtrain configs check`")


def check_files(sources: Sources, layout: Layout) -> list[Problem]:
    """Problems of every file that takes part: unknown keys, wrong values, missing or unknown kinds."""
    problems: list[Problem] = []
    fields = given_types(sources.schema)
    for file, package in layout.files:
        if package == EXPERIMENT:
            fix = "make `# @package _global_` its first line"
            what = "the keys of this experiment would land below 'experiment'"
            problems.append(Problem(what, shown_path(file.path), fix))
            continue
        own = file.get("kind")
        kinds = layout.kinds
        if package in sources.registry.groups:
            if own is None and package not in kinds:
                known = ", ".join(sources.registry.groups[package])
                problems.append(
                    Problem("`kind` is missing", shown_path(file.path), f"add `kind: ...` (known: {known})")
                )
                continue
            kinds = {**kinds, package: own.value} if own is not None else kinds
        space = KeySpace.make(sources.schema, sources.registry, kinds)
        for leaf in file.leaves:
            key = f"{package}.{leaf.key}" if package else leaf.key
            group, _, rest = key.partition(".")
            if rest == "kind" and group in sources.registry.groups and group in fields:
                problems += _check_kind(sources.registry, group, leaf.value, file.where(leaf.line))
            else:
                problems += space.check(key, leaf.value, file.where(leaf.line))
    for group in sources.registry.groups:
        if group in fields and not sources.optional(group) and group not in layout.choices:
            known = ", ".join(sources.folders.groups().get(group, []))
            what = f"{sources.verb} needs a choice of {group!r}"
            problems.append(
                Problem(what, shown_path(sources.root.path), f"give {group}=... (known: {known})")
            )
    return problems


def _check_kind(registry: Registry, group: str, kind: Any, where: str) -> list[Problem]:
    """Problems of the `kind` of a group."""
    if isinstance(kind, str) and kind in registry.groups[group]:
        return []
    return check_group(group, {"kind": kind}, registry, where, group)
