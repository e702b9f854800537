"""The model families that are read from and written to Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain.checkpoint.hf.bert import BERT_FAMILY
from llmtrain.checkpoint.hf.family import Family
from llmtrain.schema.model import ModelConfig
from llmtrain.utils.errors import ConfigError

FAMILIES: dict[str, Family] = {family.model_type: family for family in (BERT_FAMILY,)}
"""By their name in `config.json`."""


def family_named(model_type: object, where: str, families: Mapping[str, Family] = FAMILIES) -> Family:
    """The family of a `config.json`.

    Raises:
        ConfigError: it is not known.
    """
    if isinstance(model_type, str) and model_type in families:
        return families[model_type]
    raise ConfigError(
        f"models of type {model_type} cannot be read", where, f"known types: {', '.join(sorted(families))}"
    )


def family_of(config: ModelConfig, families: Mapping[str, Family] = FAMILIES) -> Family:
    """The family of one of our models.

    Raises:
        ConfigError: it has no counterpart there.
    """
    for family in families.values():
        if type(config) is family.config:
            return family
    known = ", ".join(sorted(family.config().kind for family in families.values()))
    raise ConfigError(
        f"models of kind {config.kind} cannot be written for Hugging Face", "model", f"known kinds: {known}"
    )
