"""What a worker hands to a recipe besides the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmtrain.data.sources import SOURCES
from llmtrain.data.tokenizer_build import TOKENIZERS
from llmtrain.model.build import MODELS
from llmtrain.objective.build import OBJECTIVES
from llmtrain.optim.optimizer import OPTIMIZERS
from llmtrain.optim.schedule import SCHEDULES
from llmtrain.schema.registry import Registry
from llmtrain.task.build import TASKS
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import StopFlag

BUILDERS: dict[type, Any] = {
    **SOURCES,
    **TOKENIZERS,
    **MODELS,
    **OBJECTIVES,
    **TASKS,
    **OPTIMIZERS,
    **SCHEDULES,
}
"""Everything that ships: config class -> what builds it (a function; for a task its `TaskKind`)."""


@dataclass
class Context:
    """The surroundings of a recipe.

    Attributes:
        run: directory of the run; None for verbs that leave nothing behind.
        registry: knows the config classes, those of plugins included.
        builders: config class -> builder, those of plugins included.
        stop: set by signals.
        allow_bin: open PyTorch's own files of foreign models, where there are no safetensors.
    """

    run: RunDirectory | None
    registry: Registry
    builders: dict[type, Any]
    stop: StopFlag
    allow_bin: bool = False

    @property
    def directory(self) -> RunDirectory:
        """The run's directory, for recipes that have one."""
        assert self.run is not None
        return self.run
