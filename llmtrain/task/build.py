"""The choices of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain.schema.task import (
    ClassificationTask,
    GenerationTask,
    QuestionAnsweringTask,
    TaskConfig,
    TokenClassificationTask,
)
from llmtrain.task.base import Task, TaskKind
from llmtrain.task.classification import ClassificationKind
from llmtrain.task.generation import GenerationKind
from llmtrain.task.question_answering import QuestionAnsweringKind
from llmtrain.task.token_classification import TokenClassificationKind

TASKS: dict[type, TaskKind] = {
    ClassificationTask: ClassificationKind(),
    TokenClassificationTask: TokenClassificationKind(),
    QuestionAnsweringTask: QuestionAnsweringKind(),
    GenerationTask: GenerationKind(),
}
"""Kinds of tasks."""


def build_task(config: TaskConfig, causal: bool, kinds: Mapping[type, Any] = TASKS) -> Task:
    """The task for a resolved config and a backbone that is causal or not."""
    task: Task = kinds[type(config)].build(config, causal)
    return task
