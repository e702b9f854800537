"""`llmtrain convert`: write a checkpoint as a Hugging Face model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from llmtrain.checkpoint.hf.read import is_hf_directory, read_hf
from llmtrain.checkpoint.hf.write import write_hf
from llmtrain.checkpoint.read import resolve
from llmtrain.recipe.checkpointed import read_config, read_tokenizer, saved_weights
from llmtrain.recipe.context import Context
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.roots import ConvertConfig, FinetuneConfig
from llmtrain.schema.task import ClassificationTask, Pool, Target, TaskConfig, TokenClassificationTask
from llmtrain.utils.errors import ConfigError

PROBLEM_TYPES = {
    Target.label: "single_label_classification",
    Target.labels: "multi_label_classification",
    Target.number: "regression",
}
"""What a classifier predicts, in the words of transformers."""


def convert(config: ConvertConfig, context: Context) -> int:
    """Write the directory, and read it back: every tensor must be there with the same bits."""
    assert config.source is not None
    assert config.target is not None
    if is_hf_directory(Path(config.source)):
        what = f"{config.source} is a Hugging Face model directory already"
        raise ConfigError(what, "source", "give a run, or a checkpoint of it")
    source, target = resolve(Path(config.source), "source"), Path(config.target)
    if target.exists():
        raise ConfigError(f"{target} is there already", "target", "give a directory that is to be made")
    trained = read_config(source, context)
    tensors = saved_weights(source).read()
    if isinstance(trained, FinetuneConfig):
        tensors = in_own_unit(tensors, trained.task)
    told = classes(trained.task, f"{source}: task.pool") if isinstance(trained, FinetuneConfig) else {}
    assert trained.model is not None
    tokenizer = read_tokenizer(source)
    write_hf(target, trained.model, tensors, tokenizer.to_json(), end_token=tokenizer.unusual_end, **told)
    written = read_hf(target)
    wrong = [name for name, tensor in tensors.items() if not same_rows(tensor, written.tensors[name])]
    assert not wrong, f"not as they were: {wrong}"
    make_console().print(
        f"{target}: {len(tensors)} tensors of {source.name}, read back with the same bits", markup=False
    )
    return 0


def same_rows(one: Tensor, other: Tensor) -> bool:
    """Whether tensors have the same bits; one may have more rows of zeros, which pad a vocabulary."""
    rows = min(len(one), len(other))
    return one[:rows].equal(other[:rows]) and not one[rows:].any() and not other[rows:].any()


def in_own_unit(tensors: dict[str, Tensor], task: TaskConfig) -> dict[str, Tensor]:
    """The tensors, in which a classifier that learned numbers by mean and scale gives them as they are."""
    if not isinstance(task, ClassificationTask) or task.number_scale is None:
        return tensors
    weight, bias = "head.classifier.weight", "head.classifier.bias"
    own = tensors[bias].double() * task.number_scale + (task.number_mean or 0.0)
    scaled = tensors[weight].double() * task.number_scale
    return tensors | {weight: scaled.float(), bias: own.float()}


def classes(task: TaskConfig, where: str) -> dict[str, Any]:
    """What transformers should know about the classes of a task: arguments of `write_hf`.

    Raises:
        ConfigError: their classifier does not read the position that ours reads.
    """
    if isinstance(task, TokenClassificationTask):
        return {"labels": task.labels}
    if not isinstance(task, ClassificationTask):
        return {}
    if task.pool not in (Pool.auto, Pool.first):
        raise ConfigError(
            f"transformers have no BERT with a classifier of pool={task.pool.value}",
            where,
            "convert a run with task.pool=first",
        )
    return {"labels": task.labels, "problem_type": PROBLEM_TYPES[task.target]}
