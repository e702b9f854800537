"""GPT-2 in Hugging Face's layout: linear layers are transposed, queries, keys and values are joined."""

from __future__ import annotations

import logging
from typing import Any

from llmtrain.checkpoint.hf.family import TRANSPOSED, Family, KeyTable, Settings
from llmtrain.checkpoint.hf.settings import check_fixed, differing, known, read_values, word_for, write_values
from llmtrain.checkpoint.weights import Stored
from llmtrain.schema.load import build
from llmtrain.schema.model import Activation, GPTConfig, Norm, Position
from llmtrain.schema.registry import Registry

logger = logging.getLogger(__name__)

BLOCK = (
    ("ln_1", "attention_norm"),
    ("attn.c_attn/0", "attention.query"),
    ("attn.c_attn/1", "attention.key"),
    ("attn.c_attn/2", "attention.value"),
    ("attn.c_proj", "attention.out"),
    ("ln_2", "mlp_norm"),
    ("mlp.c_fc", "mlp.up"),
    ("mlp.c_proj", "mlp.down"),
)
"""Modules of one block."""

KEYS = KeyTable(
    (
        ("transformer.wte", "backbone.embedding"),
        ("transformer.wpe", "backbone.position"),
        *((f"transformer.h.{{}}.{theirs}", f"backbone.blocks.{{}}.{ours}") for theirs, ours in BLOCK),
        ("transformer.ln_f", "backbone.norm"),
        ("lm_head", "head.projection"),
    )
)
"""Every parameter that both sides have."""

NUMBERS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50257),
    "n_positions": ("max_positions", 1024),
    "n_embd": ("dim", 768),
    "n_layer": ("num_layers", 12),
    "n_head": ("num_heads", 12),
    "n_inner": ("hidden_dim", None),
    "resid_pdrop": ("dropout", 0.1),
    "layer_norm_epsilon": ("norm_eps", 1e-5),
    "initializer_range": ("init_std", 0.02),
    "tie_word_embeddings": ("tie_embeddings", True),
}
"""Key there -> key here, and what Hugging Face takes where the file does not say."""

ACTIVATIONS = {
    "gelu_new": Activation.gelu_tanh,
    "gelu": Activation.gelu,
    "gelu_pytorch_tanh": Activation.gelu_tanh,
    "gelu_fast": Activation.gelu_tanh,
    "relu2": Activation.relu_squared,
}
"""`activation_function` there -> activation here."""

FIXED: dict[str, Any] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""Settings that we know one value of, which is the default too."""

WANTED: dict[str, Any] = {
    "position": Position.learned,
    "norm": Norm.layernorm,
    "bias": True,
    "query_key_norm": False,
    "window": None,
}
"""Settings of ours that GPT-2 has one value of."""


def read_config(theirs: Settings, where: str) -> GPTConfig:
    """Our config for a `config.json`.

    Raises:
        ConfigError: a setting has no counterpart here, or a value makes no sense.
    """
    check_fixed(theirs, FIXED, "GPT-2", where)
    activation = known(theirs, "activation_function", "gelu_new", ACTIVATIONS, "GPT-2", where)
    values = read_values(theirs, NUMBERS)
    for key in ("embd_pdrop", "attn_pdrop"):
        if theirs.get(key, 0.1) != values["dropout"]:
            logger.warning("%s: %s is replaced by resid_pdrop=%s", where, key, values["dropout"])
    config: GPTConfig = build(GPTConfig, {"activation": activation.value, **values}, Registry(), where)
    return config


def write_config(config: GPTConfig, tokenizer: Settings) -> dict[str, Any]:
    """Content of `config.json`."""
    return FIXED | write_values(config, NUMBERS) | {
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "activation_function": word_for(config.activation, ACTIVATIONS),
    }  # fmt: skip


def misfits(config: GPTConfig, tokenizer: Settings) -> list[str]:
    """Settings that GPT-2 has not."""
    found = differing(config, WANTED)
    for key, usual in (("num_kv_heads", config.num_heads), ("head_dim", config.dim // config.num_heads)):
        if getattr(config, key) not in (None, usual):
            found.append(f"{key}={getattr(config, key)}")
    found += [f"{key}=false" for key in ("qkv_bias", "out_bias") if getattr(config, key) is False]
    if word_for(config.activation, ACTIVATIONS) is None:
        found.append(f"activation={config.activation.value}")
    return found


def normalise_key(key: str) -> str | None:
    """A key with `transformer.`, which OpenAI's own files leave out; None for masks."""
    if not key.startswith(("transformer.", "lm_head.")):
        key = f"transformer.{key}"
    return None if key.endswith((".attn.bias", ".attn.masked_bias")) else key


def architecture(names: set[str]) -> str:
    """The class that has the projection onto the vocabulary."""
    return "GPT2LMHeadModel"


def finish(architecture: str, tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Nothing is missing."""
    return tensors


GPT2_FAMILY = Family(
    model_type="gpt2",
    config=GPTConfig,
    keys=KEYS,
    vocabulary=("backbone.embedding.weight", "head.projection.weight"),
    read_config=read_config,
    write_config=write_config,
    misfits=misfits,
    normalise_key=normalise_key,
    repeated=(("lm_head.weight", "transformer.wte.weight"),),
    architecture=architecture,
    finish=finish,
    joined={"transformer.h.{}.attn.c_attn": 3},
    changes={
        f"backbone.blocks.{{}}.{name}.weight": TRANSPOSED
        for name in (
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.out",
            "mlp.up",
            "mlp.down",
        )
    },
)
