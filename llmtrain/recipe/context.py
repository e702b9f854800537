"""What a worker hands to a recipe besides the config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmtrain.schema.registry import Registry
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import StopFlag


@dataclass
class Context:
    """The surroundings of a recipe.

    Attributes:
        run: directory of the run; None for verbs that leave nothing behind.
        registry: knows the config classes, those of plugins included.
        builders: of plugins, config class -> builder; they join the built-in ones.
        stop: set by signals.
    """

    run: RunDirectory | None
    registry: Registry
    builders: dict[type, Callable[..., Any]]
    stop: StopFlag

    @property
    def directory(self) -> RunDirectory:
        """The run's directory, for recipes that have one."""
        assert self.run is not None
        return self.run
