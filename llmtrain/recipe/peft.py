"""Adapters that go to and come from Hugging Face's PEFT."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llmtrain.adapt.lora import MergedWeights
from llmtrain.checkpoint.hf.families import family_for
from llmtrain.checkpoint.hf.family import Family
from llmtrain.checkpoint.hf.foreign import is_foreign
from llmtrain.checkpoint.hf.locate import locate
from llmtrain.checkpoint.hf.peft import PeftConfig, base_named, read_peft, write_peft
from llmtrain.checkpoint.hf.write import in_memory, tokenizer_files
from llmtrain.checkpoint.read import resolve
from llmtrain.checkpoint.weights import StoredTensors
from llmtrain.recipe.adapters import read_base
from llmtrain.recipe.checkpointed import open_pretrained, read_config, saved_weights
from llmtrain.recipe.context import Context
from llmtrain.recipe.conversion import Source, foreign_source, in_own_unit, own_source
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.adapt import LoRAConfig
from llmtrain.schema.roots import FinetuneConfig
from llmtrain.schema.task import (
    ClassificationTask,
    GenerationTask,
    QuestionAnsweringTask,
    TokenClassificationTask,
)
from llmtrain.utils.errors import ConfigError

TASK_TYPES: dict[type, str] = {
    ClassificationTask: "SEQ_CLS",
    TokenClassificationTask: "TOKEN_CLS",
    QuestionAnsweringTask: "QUESTION_ANS",
    GenerationTask: "CAUSAL_LM",
}
"""What a model is for, in the words of PEFT."""


def has_adapters(checkpoint: Path, context: Context) -> bool:
    """Whether a checkpoint of ours holds adapters, and not a whole model."""
    return read_config(checkpoint, context).adapt is not None


def family_of(source: Source, names: set[str]) -> Family:
    """The family of Hugging Face that has these parameters of a model."""
    return family_for(source.model, names, tokenizer_files(source.tokenizer, source.model).settings)


def to_peft(checkpoint: Path, target: Path, context: Context) -> int:
    """Write the adapters of a checkpoint for PEFT, and read them back: they must change weights alike.

    Raises:
        ConfigError: the model has no counterpart there; see also `read_base`.
    """
    config = read_config(checkpoint, context)
    assert isinstance(config.adapt, LoRAConfig)
    record = read_base(checkpoint)
    whole = own_source(checkpoint, context)
    family = family_of(whole, set(whole.tensors))
    own = saved_weights(checkpoint).read()
    if isinstance(config, FinetuneConfig):
        own = in_own_unit(own, config.task)
        task = TASK_TYPES.get(type(config.task))
    else:
        task = "CAUSAL_LM" if whole.model.causal else None
    texts = tokenizer_files(whole.tokenizer, whole.model).texts
    write_peft(target, own, family, PeftConfig(config.adapt, record.path, task), texts)
    base = open_pretrained(record.path, context).weights()
    again = MergedWeights(base, StoredTensors(read_peft(target, family)), 1.0, record.carried).read()
    largest = max(float((again[name] - one).abs().max()) for name, one in whole.tensors.items())
    assert largest < 1e-5, f"not as they were: {largest}"
    base_form = "" if is_foreign(Path(record.path)) else "; `llmtrain convert` makes it a directory of theirs"
    make_console().print(
        f"{target}: {len(own)} tensors, read back; weights with them deviate by at most {largest:.3g}\n"
        f"they belong to {record.path}{base_form}",
        markup=False,
    )
    return 0


def peft_source(path: Path, base: str | None, context: Context) -> Source:
    """Adapters of PEFT folded into their base.

    Args:
        path: their directory.
        base: the model that they belong to. Default: what they name.
        context: surroundings.

    Raises:
        ConfigError: they name none, or are of a kind that is not known here.
    """
    name = base or base_named(path)
    if name is None:
        raise ConfigError("the adapters do not say which model they belong to", str(path), "give base=...")
    located = locate(name, context.allow_bin)
    source = (
        foreign_source(located, context) if is_foreign(located) else own_source(resolve(located), context)
    )
    adapters = read_peft(path, family_of(source, set(source.tensors)))
    merged = MergedWeights(StoredTensors(in_memory(source.tensors)), StoredTensors(adapters), 1.0)
    return dataclasses.replace(source, path=path, tensors=merged.read())
