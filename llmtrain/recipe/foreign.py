"""A model that was made elsewhere, as if it had been pretrained here."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from llmtrain.checkpoint.hf.read import HFModel
from llmtrain.schema.data import TextData
from llmtrain.schema.load import dump, flatten
from llmtrain.schema.model import ModelConfig
from llmtrain.schema.objective import CausalConfig, MLMConfig, MLMNSPConfig, ObjectiveConfig
from llmtrain.schema.optim import AdamWConfig, ConstantSchedule
from llmtrain.schema.roots import PretrainConfig
from llmtrain.schema.tokenizer import FileTokenizer
from llmtrain.utils.errors import ConfigError

DEFAULTS = {"gpt": "gpt/small", "bert": "bert/base"}
"""Kind of a model -> the choice in `configs/model` that has the defaults of its dataclass."""

LONGEST_ROW = 1024
"""Tokens in a row, where nobody says how many."""


def objective_of(config: ModelConfig, names: Set[str]) -> ObjectiveConfig | None:
    """What a model was pretrained for, by its heads; None where it has none for text.

    Args:
        config: of the backbone.
        names: of the parameters.
    """
    if config.causal:
        tied = getattr(config, "tie_embeddings", True)
        return CausalConfig() if tied or "head.projection.weight" in names else None
    if "head.masked.dense.weight" not in names:
        return None
    return MLMNSPConfig() if "head.next.weight" in names else MLMConfig()


def imported_config(found: HFModel, path: Path, for_use: bool = True) -> PretrainConfig:
    """The configuration of a pretraining that would have made a model; there is no text in it.

    Args:
        found: the model.
        path: where it is.
        for_use: it has to have a head that predicts text.

    Raises:
        ConfigError: it has none.
    """
    objective = objective_of(found.config, found.tensors.keys())
    if objective is None:
        if for_use:
            what = "the model has no head that predicts text"
            raise ConfigError(what, str(path), "train one: llmtrain finetune init_from=...")
        objective = CausalConfig() if found.config.causal else MLMConfig()
    config = PretrainConfig(
        model=found.config,
        objective=objective,
        data=TextData(),
        tokenizer=FileTokenizer(),
        optim=AdamWConfig(),
        schedule=ConstantSchedule(),
        extra={"imported": path.name, "licence": found.licence},
    )
    config.train.sequence_length = min(found.config.max_positions, LONGEST_ROW)
    return config


def model_words(config: ModelConfig) -> list[str]:
    """What to type for a model of this shape; nothing for a kind that has no choice with its defaults."""
    if config.kind not in DEFAULTS:
        return []
    usual, own = flatten(dump(type(config)())), flatten(dump(config))
    changed = [f"model.{key}={plain(value)}" for key, value in own.items() if value != usual[key]]
    return [f"model={DEFAULTS[config.kind]}", *changed]


def plain(value: object) -> str:
    """A value as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
