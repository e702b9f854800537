"""Plugins: folders (or installed packages) with `schema.py`, `build.py` and `configs/` of a user's own.

`schema.py` has `register(registry)` and must not import torch; `build.py` has `register(builders)`. The
folder is imported as a package, so that both see the same classes. Installed packages take part through
the entry point group `llmtrain.plugins`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from llmtrain.schema.registry import Registry, builtin_registry
from llmtrain.utils.errors import ConfigError

ENTRY_POINTS = "llmtrain.plugins"
"""Entry point group of installed plugins; the value of an entry is the name of a package."""


def plugin_packages(folders: Iterable[str | Path]) -> dict[str, Path]:
    """Name and folder of every plugin: those given, then installed ones.

    Raises:
        ConfigError: a folder is missing or has no `schema.py`; an installed package cannot be found.
    """
    packages: dict[str, Path] = {}
    for given in folders:
        folder = Path(given).expanduser().resolve()
        if not (folder / "schema.py").is_file():
            missing = "is not there" if not folder.is_dir() else "has no schema.py"
            raise ConfigError(
                f"the plugin folder {str(given)!r} {missing}",
                "run.plugins",
                "give a folder with schema.py, build.py and configs/",
            )
        digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        packages[f"llmtrain_plugin_{folder.name.replace('-', '_').replace('.', '_')}_{digest}"] = folder
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        spec = importlib.util.find_spec(entry.value)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"the installed plugin {entry.name!r} names {entry.value!r}, which is no package",
                f"entry point group {ENTRY_POINTS}",
                "install the plugin again, or uninstall it",
            )
        packages[entry.value] = Path(next(iter(spec.submodule_search_locations)))
    return packages


def load_schemas(registry: Registry, folders: Iterable[str | Path]) -> None:
    """Let every plugin add its schemas to `registry`.

    Raises:
        ConfigError: a plugin is missing or fails.
    """
    _register(folders, "schema", registry)


def load_builders(folders: Iterable[str | Path]) -> dict[type, Callable[..., Any]]:
    """Builders of every plugin: schema dataclass -> what builds it.

    Raises:
        ConfigError: a plugin is missing or fails.
    """
    builders: dict[type, Callable[..., Any]] = {}
    _register(folders, "build", builders)
    return builders


def config_dirs(folders: Iterable[str | Path]) -> tuple[Path, ...]:
    """The `configs` folders of the plugins that have one."""
    candidates = [folder / "configs" for folder in plugin_packages(folders).values()]
    return tuple(path for path in candidates if path.is_dir())


def registry_with(folders: Iterable[str | Path]) -> Registry:
    """A registry of everything that ships with llmtrain and of the plugins.

    Raises:
        ConfigError: a plugin is missing or fails.
    """
    registry = builtin_registry()
    load_schemas(registry, folders)
    return registry


def _register(folders: Iterable[str | Path], module_name: str, target: Any) -> None:
    """Import one module of every plugin and call its `register(target)`."""
    for name, folder in plugin_packages(folders).items():
        path = folder / f"{module_name}.py"
        if not path.is_file():
            continue
        try:
            _import_package(name, folder)
            importlib.import_module(f"{name}.{module_name}").register(target)
        except Exception as error:
            raise ConfigError(
                f"the plugin failed with {type(error).__name__}: {error}",
                _place_in(path.parent, error) or str(path),
                f"correct it; {module_name}.py needs a function register("
                + ("registry)" if module_name == "schema" else "builders)"),
            ) from error


def _import_package(name: str, folder: Path) -> ModuleType:
    """Import a folder as a package, under a name of its own."""
    if name in sys.modules:
        return sys.modules[name]
    init = folder / "__init__.py"
    if not name.startswith("llmtrain_plugin_"):
        return importlib.import_module(name)
    if init.is_file():
        spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    else:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if spec.loader is not None:
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def _place_in(folder: Path, error: BaseException) -> str:
    """`file:line` of the innermost frame of a traceback that lies in a folder."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(folder)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
