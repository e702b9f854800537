"""BERT in Hugging Face's layout: `BertModel` and its heads."""

from __future__ import annotations

import logging
from typing import Any

import torch

from llmtrain.checkpoint.hf.family import Family, KeyTable, Settings
from llmtrain.checkpoint.hf.settings import check_fixed, differing, known, read_values, word_for, write_values
from llmtrain.checkpoint.weights import Stored
from llmtrain.schema.load import build
from llmtrain.schema.model import Activation, BERTConfig, Norm, Position
from llmtrain.schema.registry import Registry

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
    "relu2": Activation.relu_squared,
}
"""`hidden_act` there -> activation here; those of one value compute the same."""

FIXED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""Settings that we know one value of, which is the default too."""


WANTED: dict[str, Any] = {
    "norm_first": False,
    "position": Position.learned,
    "norm": Norm.layernorm,
    "bias": True,
    "local_window": None,
    "query_key_norm": False,
}
"""Settings of ours that BERT has one value of."""


def read_config(theirs: Settings, where: str) -> BERTConfig:
    """Our config for a `config.json`.

    Raises:
        ConfigError: a setting has no counterpart here, or a value makes no sense.
    """
    check_fixed(theirs, FIXED, "BERT", where)
    activation = known(theirs, "hidden_act", "gelu", ACTIVATIONS, "BERT", where)
    dropout = theirs.get("hidden_dropout_prob", 0.1)
    if (other := theirs.get("attention_probs_dropout_prob", dropout)) != dropout:
        logger.warning("%s: attention dropout %s is replaced by hidden dropout %s", where, other, dropout)
    values = {"activation": activation.value, **read_values(theirs, NUMBERS)}
    config: BERTConfig = build(BERTConfig, values, Registry(), where)
    return config


def write_config(config: BERTConfig, tokenizer: Settings) -> dict[str, Any]:
    """Content of `config.json`."""
    return FIXED | write_values(config, NUMBERS) | {
        "intermediate_size": config.hidden_dim or 4 * config.dim,
        "type_vocab_size": max(1, config.num_segments),
        "attention_probs_dropout_prob": config.dropout,
        "hidden_act": word_for(config.activation, ACTIVATIONS),
    }  # fmt: skip


def misfits(config: BERTConfig, tokenizer: Settings) -> list[str]:
    """Settings that BERT has not."""
    found = differing(config, WANTED)
    if config.head_width * config.num_heads != config.dim:
        found.append(f"head_dim={config.head_dim}")
    found += [f"{key}=false" for key in ("qkv_bias", "out_bias") if getattr(config, key) is False]
    if word_for(config.activation, ACTIVATIONS) is None:
        found.append(f"activation={config.activation.value}")
    return found


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


def finish(architecture: str, tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Tensors as a class wants them: there is always an embedding of segments, and a bare model's keys
    have no prefix."""
    width = tensors["bert.embeddings.word_embeddings.weight"].shape[1]
    nothing = Stored(torch.Size((1, width)), lambda: torch.zeros(1, width))
    tensors = {"bert.embeddings.token_type_embeddings.weight": nothing} | tensors
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
    misfits=misfits,
    normalise_key=normalise_key,
    repeated=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    architecture=architecture,
    finish=finish,
)
