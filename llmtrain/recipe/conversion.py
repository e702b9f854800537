"""What is converted: a checkpoint of ours or a foreign model, in one form; and whether what was written says
the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.hf.foreign import read_foreign
from llmtrain.checkpoint.hf.write import Classes
from llmtrain.checkpoint.read import read_state
from llmtrain.data.batch import Batch
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.model.assembled import Assembled, Backbone, Head
from llmtrain.model.build import build_model, materialise
from llmtrain.objective.build import build_objective
from llmtrain.recipe.checkpointed import average_note, checkpoint_weights, read_config, read_tokenizer
from llmtrain.recipe.context import Context
from llmtrain.recipe.foreign import imported_config, objective_of
from llmtrain.schema.model import ModelConfig
from llmtrain.schema.roots import FinetuneConfig, PretrainConfig
from llmtrain.schema.task import ClassificationTask, Pool, Target, TaskConfig, TokenClassificationTask
from llmtrain.task.build import build_task
from llmtrain.utils.errors import ConfigError, DataError

ROWS, LENGTH = 2, 64
"""Rows and tokens of the input on which outputs are compared."""

PROBLEM_TYPES = {
    Target.label: "single_label_classification",
    Target.labels: "multi_label_classification",
    Target.number: "regression",
}
"""What a classifier predicts, in the words of transformers."""


@dataclass
class Source:
    """What is converted.

    Attributes:
        path: where it is.
        foreign: whether it was made elsewhere.
        config: of the training that made it, or would have.
        tensors: our name -> tensor.
        tokenizer: of the model.
        state: that was saved with it.
        classes: of its task.
        told: what the user should know.
        note: which of its weights are taken; may be empty.
    """

    path: Path
    foreign: bool
    config: PretrainConfig | FinetuneConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    state: dict[str, Any] = field(default_factory=dict)
    classes: Classes = field(default_factory=Classes)
    told: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def model(self) -> ModelConfig:
        """Of the backbone."""
        assert self.config.model is not None
        return self.config.model

    def build_head(self, context: Context) -> Callable[[Backbone], Head]:
        """Of the head that its training has."""
        if isinstance(self.config, FinetuneConfig):
            return build_task(self.config.task, self.model.causal, context.builders).build_head
        return build_objective(self.config.objective, self.config.data, context.builders).build_head


def foreign_source(path: Path, context: Context) -> Source:
    """A model that was made elsewhere."""
    found = read_foreign(path, context.allow_bin)
    told = [f"unknown in {path.name}, left out: {', '.join(found.unknown)}"] if found.unknown else []
    config = imported_config(found, path, for_use=False)
    if objective_of(found.config, found.tensors.keys()) is None:
        told.append(f"{path.name} has no head that predicts text: start a training from it")
    return Source(path, True, config, found.tensors, found.tokenizer, {"imported": path.name}, told=told)


def own_source(path: Path, context: Context) -> Source:
    """A checkpoint of ours, with the numbers of its task in their own unit."""
    config = read_config(path, context)
    tensors = checkpoint_weights(path, config, context).read()
    told = Classes()
    if isinstance(config, FinetuneConfig):
        tensors = in_own_unit(tensors, config.task)
        told = classes(config.task, f"{path}: task.pool")
    state, note = read_state(path), average_note(path, config)
    return Source(path, False, config, tensors, read_tokenizer(path), state, told, note=note)


def in_own_unit(tensors: dict[str, Tensor], task: TaskConfig) -> dict[str, Tensor]:
    """The tensors, in which a classifier that learned numbers by mean and scale gives them as they are."""
    if not isinstance(task, ClassificationTask) or task.number_scale is None:
        return tensors
    weight, bias = "head.classifier.weight", "head.classifier.bias"
    own = tensors[bias].double() * task.number_scale + (task.number_mean or 0.0)
    scaled = tensors[weight].double() * task.number_scale
    return tensors | {weight: scaled.float(), bias: own.float()}


def classes(task: TaskConfig, where: str) -> Classes:
    """What transformers should know about the classes of a task.

    Raises:
        ConfigError: their classifier does not read the position that ours reads.
    """
    if isinstance(task, TokenClassificationTask):
        return Classes(task.labels)
    if not isinstance(task, ClassificationTask):
        return Classes()
    if task.pool not in (Pool.auto, Pool.first):
        raise ConfigError(
            f"transformers have no BERT with a classifier of pool={task.pool.value}",
            where,
            "convert a run with task.pool=first",
        )
    return Classes(task.labels, PROBLEM_TYPES[task.target])


@torch.no_grad()
def outputs(
    config: ModelConfig,
    build_head: Callable[[Backbone], Head],
    tensors: Mapping[str, Tensor],
    context: Context,
) -> Tensor:
    """What a model says to a fixed input: the scores of its head, (B, ...); without a whole head its states.

    Args:
        config: of the backbone.
        build_head: of the head.
        tensors: our name -> tensor; there may be more than the model has.
        context: builders.
    """
    model = build_model(config, build_head, context.builders)
    materialise(model, torch.device("cpu"))
    model.eval()
    whole = True
    for name, parameter in model.named_parameters():
        if name in tensors:
            parameter.copy_(tensors[name])
        else:
            whole = False
    batch = fixed_input(model)
    return model.predict(batch) if whole else model.backbone(batch)


def fixed_input(model: Assembled) -> Batch:
    """Random tokens, the same in each call."""
    config: ModelConfig = model.backbone.config  # type: ignore[assignment]
    length = min(LENGTH, config.max_positions)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.backbone.vocab_size, (ROWS, length), generator=generator)
    return Batch(ids, first=torch.zeros(ROWS, 1, dtype=torch.int64))


def largest_deviation(expected: Tensor, found: Tensor, tolerance: float, where: Path) -> tuple[float, float]:
    """Largest difference between outputs, and the largest output.

    Args:
        expected: of the original.
        found: of what was written.
        tolerance: as a share of the largest output.
        where: what was converted.

    Raises:
        DataError: they differ by more.
    """
    assert expected.shape == found.shape, (expected.shape, found.shape)
    largest = float(expected.abs().max())
    deviation = float((expected - found).abs().max())
    if not deviation <= tolerance * largest:  # NaN is not
        raise DataError(
            f"what was written says something else: outputs differ by {deviation:.3g}, and the largest is "
            f"{largest:.3g}; nothing is left of it",
            str(where),
            "please report this as a bug, unless the weights are not finite",
        )
    return deviation, largest
