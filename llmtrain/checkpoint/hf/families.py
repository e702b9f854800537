"""The model families that are read from and written to Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Mapping, Set

from llmtrain.checkpoint.hf.bert import BERT_FAMILY
from llmtrain.checkpoint.hf.family import Family, Settings
from llmtrain.checkpoint.hf.gpt2 import GPT2_FAMILY
from llmtrain.checkpoint.hf.llama import LLAMA_FAMILIES
from llmtrain.checkpoint.hf.roberta import ROBERTA_FAMILY
from llmtrain.schema.model import ModelConfig
from llmtrain.utils.errors import ConfigError

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (GPT2_FAMILY, *LLAMA_FAMILIES.values(), ROBERTA_FAMILY, BERT_FAMILY)
}
"""By their name in `config.json`; a model of ours becomes one of the first family that can express it."""


def family_named(theirs: Settings, where: str, families: Mapping[str, Family] = FAMILIES) -> Family:
    """The family of a `config.json`.

    Raises:
        ConfigError: it is not known.
    """
    model_type = theirs.get("model_type")
    if model_type is None and is_early_bert(theirs):
        model_type = BERT_FAMILY.model_type
    if isinstance(model_type, str) and model_type in families:
        return families[model_type]
    raise ConfigError(
        f"models of type {model_type} cannot be read", where, f"known types: {', '.join(sorted(families))}"
    )


def is_early_bert(theirs: Settings) -> bool:
    """Whether a `config.json` is of the time when BERT was the only model and did not say its type."""
    return (
        "model_type" not in theirs and {"type_vocab_size", "num_hidden_layers", "vocab_size"} <= theirs.keys()
    )


def family_for(
    config: ModelConfig,
    names: Set[str],
    tokenizer: Settings,
    families: Mapping[str, Family] = FAMILIES,
) -> Family:
    """The family that one of our models becomes.

    Args:
        config: of the backbone.
        names: of its parameters and of those of its head.
        tokenizer: what `config.json` will say about it.
        families: the choice.

    Raises:
        ConfigError: none can express it.
    """
    reasons = []
    for family in families.values():
        if type(config) is family.config:
            missing = family.misfits(config, tokenizer)
            missing += sorted(name for name in names if family.keys.theirs(name) is None)
            if not missing:
                return family
            reasons.append(f"{family.model_type} has no {', '.join(missing)}")
    if reasons:
        raise ConfigError(
            "no model type of Hugging Face can express the model: " + "; ".join(reasons),
            "model",
            "export a model with the settings of one of them",
        )
    known = ", ".join(sorted({family.config().kind for family in families.values()}))
    raise ConfigError(
        f"models of kind {config.kind} cannot be written for Hugging Face", "model", f"known kinds: {known}"
    )
