"""BERT in Hugging Face's layout: `BertModel` and its heads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.hf.family import Family, KeyTable
from llmtrain.schema.load import build
from llmtrain.schema.model import Activation, BERTConfig, Norm, Position
from llmtrain.schema.registry import Registry
from llmtrain.utils.errors import ConfigError

logger = logging.getLogger(__name__)

BLOCK = (
    ("attention.self.query", "attention.query"),
    ("attention.self.key", "attention.key"),
    ("attention.self.value", "attention.value"),
    ("attention.output.dense", "attention.out"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "mlp.up"),
    ("output.dense", "mlp.down"),
    ("output.LayerNorm", "mlp_norm"),
)
"""Modules of one block."""

KEYS = KeyTable(
    (
        ("bert.embeddings.word_embeddings", "backbone.embedding"),
        ("bert.embeddings.position_embeddings", "backbone.position"),
        ("bert.embeddings.token_type_embeddings", "backbone.segment"),
        ("bert.embeddings.LayerNorm", "backbone.embedding_norm"),
        *((f"bert.encoder.layer.{{}}.{theirs}", f"backbone.blocks.{{}}.{ours}") for theirs, ours in BLOCK),
        ("bert.pooler.dense", "head.pooler.dense"),
        ("cls.predictions.transform.dense", "head.masked.dense"),
        ("cls.predictions.transform.LayerNorm", "head.masked.norm"),
        ("cls.predictions.bias", "head.masked.projection.bias"),
        ("cls.seq_relationship", "head.next"),
        ("classifier", "head.classifier"),
        ("qa_outputs", "head.span"),
    )
)
"""Every parameter that both sides have."""

NUMBERS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 30522),
    "hidden_size": ("dim", 768),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "intermediate_size": ("hidden_dim", 3072),
    "hidden_dropout_prob": ("dropout", 0.1),
    "max_position_embeddings": ("max_positions", 512),
    "type_vocab_size": ("num_segments", 2),
    "initializer_range": ("init_std", 0.02),
    "layer_norm_eps": ("norm_eps", 1e-12),
}
"""Key there -> key here, and what Hugging Face takes where the file does not say."""

ACTIVATIONS = {
    "gelu": Activation.gelu,
    "gelu_new": Activation.gelu_tanh,
    "gelu_pytorch_tanh": Activation.gelu_tanh,
    "gelu_fast": Activation.gelu_tanh,
}
"""`hidden_act` there -> activation here; the last three compute the same."""

FIXED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""Settings that we know one value of, which is the default too."""


def read_config(theirs: Mapping[str, Any], where: str) -> BERTConfig:
    """Our config for a `config.json`.

    Raises:
        ConfigError: a setting has no counterpart here, or a value makes no sense.
    """
    for key, value in FIXED.items():
        if theirs.get(key, value) != value:
            raise ConfigError(
                f"BERT with {key}={theirs[key]} is not known here", where, f"only {key}={value} can be read"
            )
    activation = theirs.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"BERT with hidden_act={activation} is not known here",
            where,
            f"known are {', '.join(ACTIVATIONS)}",
        )
    dropout = theirs.get("hidden_dropout_prob", 0.1)
    if (other := theirs.get("attention_probs_dropout_prob", dropout)) != dropout:
        logger.warning("%s: attention dropout %s is replaced by hidden dropout %s", where, other, dropout)
    values = {ours: theirs.get(key, default) for key, (ours, default) in NUMBERS.items()}
    config: BERTConfig = build(
        BERTConfig, {"activation": ACTIVATIONS[activation].value, **values}, Registry(), where
    )
    return config


def write_config(config: BERTConfig) -> dict[str, Any]:
    """Content of `config.json`.

    Raises:
        ConfigError: Hugging Face's BERT cannot express the model.
    """
    names = {value: key for key, value in reversed(ACTIVATIONS.items())}
    wanted = {
        "norm_first": False,
        "position": Position.learned,
        "norm": Norm.layernorm,
        "bias": True,
        "local_window": None,
    }
    other = [
        f"{key}={getattr(config, key)}" for key, value in wanted.items() if getattr(config, key) != value
    ]
    if config.activation not in names:
        other.append(f"activation={config.activation}")
    if other:
        raise ConfigError(
            f"Hugging Face's BERT has no {', '.join(other)}",
            "model",
            "export a model with BERT's own settings",
        )
    written = {key: getattr(config, ours) for key, (ours, _) in NUMBERS.items()}
    return FIXED | written | {
        "intermediate_size": config.hidden_dim or 4 * config.dim,
        "type_vocab_size": max(1, config.num_segments),
        "attention_probs_dropout_prob": config.dropout,
        "hidden_act": names[config.activation],
    }  # fmt: skip


def normalise_key(key: str) -> str | None:
    """A key with `bert.` and with today's names of a norm's parameters; None for tables of numbers."""
    if key.startswith(("embeddings.", "encoder.", "pooler.")):
        key = f"bert.{key}"
    if key in ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids"):
        return None
    module, _, leaf = key.rpartition(".")
    return f"{module}.{ {'gamma': 'weight', 'beta': 'bias'}.get(leaf, leaf) }"


def architecture(names: set[str]) -> str:
    """The class of Hugging Face that has the heads of a model.

    A classifier without a pooler is taken for one of tokens.
    """
    if "head.next.weight" in names:
        return "BertForPreTraining"
    if "head.masked.dense.weight" in names:
        return "BertForMaskedLM"
    if "head.span.weight" in names:
        return "BertForQuestionAnswering"
    if "head.classifier.weight" not in names:
        return "BertModel"
    if "head.pooler.dense.weight" in names:
        return "BertForSequenceClassification"
    return "BertForTokenClassification"


def finish(architecture: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a class wants them: there is always an embedding of segments, and a bare model's keys
    have no prefix."""
    words = tensors["bert.embeddings.word_embeddings.weight"]
    segments = "bert.embeddings.token_type_embeddings.weight"
    tensors = {segments: torch.zeros(1, words.shape[1], dtype=words.dtype)} | tensors
    if architecture == "BertModel":
        return {key.removeprefix("bert."): tensor for key, tensor in tensors.items()}
    return tensors


BERT_FAMILY = Family(
    model_type="bert",
    config=BERTConfig,
    keys=KEYS,
    vocabulary=("backbone.embedding.weight", "head.masked.projection.bias"),
    read_config=read_config,
    write_config=write_config,
    normalise_key=normalise_key,
    repeated=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    architecture=architecture,
    finish=finish,
)
