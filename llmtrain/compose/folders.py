"""Where the YAML files are: the configs that ship with llmtrain, those of plugins, and the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmtrain.schema.load import suggest
from llmtrain.utils.errors import ConfigError

EXPERIMENT = "experiment"
"""The folder whose files set keys of any section, with `# @package _global_`."""


def find_configs_dir() -> Path:
    """The configs that ship with llmtrain: inside the installed package, else those of the checkout.

    Raises:
        ConfigError: there are none.
    """
    package = Path(__file__).resolve().parents[1]
    for path in (package / "configs", package.parent / "configs"):
        if (path / "pretrain.yaml").is_file():
            return path
    raise ConfigError(
        "the configs that ship with llmtrain are missing", str(package / "configs"), "install llmtrain again"
    )


def shown_path(path: Path) -> str:
    """A path as a user likes to read it: relative where it lies below the current directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


@dataclass(frozen=True)
class ConfigFolders:
    """Folders of YAML files, the first that has a file wins; what is in them is looked up once.

    Attributes:
        paths: absolute; the user's folder first, then those of plugins, llmtrain's own last.
    """

    paths: tuple[Path, ...]

    @classmethod
    def make(cls, config_dir: str | None = None, plugins: tuple[Path, ...] = ()) -> ConfigFolders:
        """The search path for a `--config-dir` and the `configs` folders of plugins.

        Raises:
            ConfigError: the folder is not there.
        """
        own: tuple[Path, ...] = ()
        if config_dir is not None:
            path = Path(config_dir).expanduser()
            if not path.is_dir():
                raise ConfigError(
                    f"there is no config folder {config_dir!r}",
                    f"command line: --config-dir {config_dir}",
                    "give a folder with YAML files in group folders, such as my/model/big.yaml",
                )
            own = (path.resolve(),)
        return cls((*own, *plugins, find_configs_dir()))

    def find(self, name: str) -> Path | None:
        """The file of a name without suffix, such as `model/gpt/small`."""
        for folder in self.paths:
            path = folder / f"{name}.yaml"
            if path.is_file():
                return path
        return None

    def names(self) -> dict[str, Path]:
        """Every name and the file that stands for it, sorted; shadowed files are left out."""
        return self._names

    @cached_property
    def _names(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self.paths:
            for path in folder.rglob("*.yaml"):
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        return dict(sorted(found.items()))

    def groups(self) -> dict[str, list[str]]:
        """Choices of each group: `{"model": ["gpt/small", ...], ...}`."""
        return self._groups

    @cached_property
    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in self.names():
            group, slash, choice = name.partition("/")
            if slash:
                groups.setdefault(group, []).append(choice)
        return groups

    def require(self, name: str, where: str) -> Path:
        """The file of a name.

        Raises:
            ConfigError: there is none; with the nearest name that there is.
        """
        path = self.find(name)
        if path is None:
            known = list(self.names())
            group = name.partition("/")[0]
            near = [other for other in known if other.startswith(f"{group}/")] or known
            raise ConfigError(f"there is no config {name!r}", where, suggest(name, near))
        return path
