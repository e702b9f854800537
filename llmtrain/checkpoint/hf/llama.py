"""Llama and its like in Hugging Face's layout: Llama, Mistral, Qwen2, Qwen3 (SmolLM is a Llama).

They share their keys and nearly all settings; what differs stands in `VARIANTS`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llmtrain.checkpoint.hf.family import Family, KeyTable, Settings
from llmtrain.checkpoint.hf.rotary import read_rotary, write_rotary
from llmtrain.checkpoint.hf.settings import check_fixed, differing, known, read_values, word_for, write_values
from llmtrain.checkpoint.weights import Stored
from llmtrain.schema.load import build
from llmtrain.schema.model import Activation, GPTConfig, Norm, Position
from llmtrain.schema.registry import Registry

logger = logging.getLogger(__name__)

BLOCK = (
    ("input_layernorm", "attention_norm"),
    ("self_attn.q_proj", "attention.query"),
    ("self_attn.k_proj", "attention.key"),
    ("self_attn.v_proj", "attention.value"),
    ("self_attn.o_proj", "attention.out"),
    ("self_attn.q_norm", "attention.query_norm"),
    ("self_attn.k_norm", "attention.key_norm"),
    ("post_attention_layernorm", "mlp_norm"),
    ("mlp.gate_proj", "mlp.gate"),
    ("mlp.up_proj", "mlp.up"),
    ("mlp.down_proj", "mlp.down"),
)
"""Modules of one block."""

KEYS = KeyTable(
    (
        ("model.embed_tokens", "backbone.embedding"),
        *((f"model.layers.{{}}.{theirs}", f"backbone.blocks.{{}}.{ours}") for theirs, ours in BLOCK),
        ("model.norm", "backbone.norm"),
        ("lm_head", "head.projection"),
    )
)
"""Every parameter that both sides have."""

NUMBERS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "hidden_size": ("dim", 4096),
    "intermediate_size": ("hidden_dim", 11008),
    "num_hidden_layers": ("num_layers", 32),
    "num_attention_heads": ("num_heads", 32),
    "num_key_value_heads": ("num_kv_heads", None),
    "head_dim": ("head_dim", None),
    "max_position_embeddings": ("max_positions", 2048),
    "initializer_range": ("init_std", 0.02),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "attention_dropout": ("dropout", 0.0),
    "tie_word_embeddings": ("tie_embeddings", False),
}
"""Key there -> key here, and what Hugging Face takes for a Llama where the file does not say."""

ACTIVATIONS = {"silu": Activation.swiglu, "swish": Activation.swiglu, "gelu": Activation.geglu}
"""`hidden_act` there -> activation here."""

Biases = tuple[bool, bool, bool]
"""Whether there are biases in the projections to queries, keys and values; in the one that ends attention;
in the feed-forward layer."""


def biases(config: GPTConfig) -> Biases:
    """Those of a model of ours."""
    qkv, out = (config.bias if one is None else one for one in (config.qkv_bias, config.out_bias))
    return qkv, out, config.bias


def read_llama_biases(theirs: Settings) -> Biases:
    """Attention and feed-forward layer each have all or none."""
    attention, mlp = bool(theirs.get("attention_bias", False)), bool(theirs.get("mlp_bias", False))
    return attention, attention, mlp


@dataclass(frozen=True)
class Variant:
    """In what a family differs from Llama.

    Attributes:
        name: of its classes.
        defaults: values that Hugging Face takes where the file does not say.
        read_biases: settings -> biases.
        window: a switch and its default that say whether `sliding_window` counts in some layers, and the
            window's default; None where there is none.
        query_key_norm: whether queries and keys are normalised.
        free_head_dim: whether the width of a head may be set.
        slides: whether `sliding_window` is that of all layers.
    """

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    read_biases: Any = read_llama_biases
    window: tuple[str, bool, int] | None = None
    query_key_norm: bool = False
    free_head_dim: bool = True
    slides: bool = False


def read_no_biases(theirs: Settings) -> Biases:
    """There are none."""
    return False, False, False


def read_qwen2_biases(theirs: Settings) -> Biases:
    """Only queries, keys and values have them."""
    return True, False, False


def read_qwen3_biases(theirs: Settings) -> Biases:
    """Attention has all or none."""
    attention = bool(theirs.get("attention_bias", False))
    return attention, attention, False


QWEN = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
VARIANTS: dict[str, Variant] = {
    "llama": Variant("Llama"),
    "qwen2": Variant("Qwen2", QWEN, read_qwen2_biases, ("use_sliding_window", False, 4096), False, False),
    "qwen3": Variant(
        "Qwen3", {**QWEN, "head_dim": 128}, read_qwen3_biases, ("use_sliding_window", False, 4096), True
    ),
    "mistral": Variant(
        "Mistral",
        {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
        read_no_biases,
        slides=True,
    ),
}
"""By their names in `config.json`, in the order in which a model of ours is tried on them."""


def read_config(variant: Variant, theirs: Settings, where: str) -> GPTConfig:
    """Our config for a `config.json`.

    Raises:
        ConfigError: a setting has no counterpart here, or a value makes no sense.
    """
    theirs = {**variant.defaults, **theirs}
    check_fixed(theirs, {"is_decoder": True, "add_cross_attention": False}, variant.name, where)
    activation = known(theirs, "hidden_act", "silu", ACTIVATIONS, variant.name, where)
    values = read_values(theirs, NUMBERS)
    qkv_bias, out_bias, bias = variant.read_biases(theirs)
    values |= {
        "activation": activation.value,
        "position": Position.rotary.value,
        "norm": Norm.rmsnorm.value,
        "bias": bias,
        "qkv_bias": None if qkv_bias == bias else qkv_bias,
        "out_bias": None if out_bias == bias else out_bias,
        "query_key_norm": variant.query_key_norm,
        "window": read_window(variant, theirs),
        **read_rotary(theirs, variant.name, where),
    }
    heads, width = values["num_heads"], values["dim"]
    if values["num_kv_heads"] == heads:
        values["num_kv_heads"] = None
    if isinstance(heads, int) and isinstance(width, int) and values["head_dim"] == width / max(heads, 1):
        values["head_dim"] = None
    values["max_positions"] = within_window(variant, theirs, values["max_positions"], where)
    config: GPTConfig = build(GPTConfig, values, Registry(), where)
    return config


def read_window(variant: Variant, theirs: Settings) -> Any:
    """The sliding window of a family in which all layers have it; none where it is as long as rows are."""
    if not variant.slides:
        return None
    window, positions = theirs.get("sliding_window", 4096), theirs.get("max_position_embeddings")
    return None if window is None or positions <= window else window


def within_window(variant: Variant, theirs: Settings, positions: Any, where: str) -> Any:
    """Longest row that a model with a sliding window in some layers treats as one without: not longer than
    the window."""
    if variant.window is None:
        return positions
    switch, used, default = variant.window
    window = theirs.get("sliding_window", default)
    if not theirs.get(switch, used) or window is None or positions <= window:
        return positions
    logger.warning(
        "%s: some layers have a sliding window, which is not known here; max_positions is its %s tokens "
        "instead of %s, within which nothing changes",
        where,
        window,
        positions,
    )
    return window


def write_config(variant: Variant, config: GPTConfig, tokenizer: Settings) -> dict[str, Any]:
    """Content of `config.json`."""
    written = write_values(config, NUMBERS) | write_rotary(config)
    attention, _, mlp = biases(config)
    if variant.slides:
        written["sliding_window"] = config.window
    if variant.window is not None:
        written[variant.window[0]] = False
    return written | {
        "intermediate_size": config.feed_forward_dim,
        "num_key_value_heads": config.num_kv_heads or config.num_heads,
        "head_dim": config.head_width,
        "hidden_act": word_for(config.activation, ACTIVATIONS),
        "attention_bias": attention,
        "mlp_bias": mlp,
    }


def misfits(variant: Variant, config: GPTConfig, tokenizer: Settings) -> list[str]:
    """Settings that the family has not."""
    wanted = {
        "position": Position.rotary,
        "norm": Norm.rmsnorm,
        "query_key_norm": variant.query_key_norm,
    }
    found = differing(config, wanted)
    if word_for(config.activation, ACTIVATIONS) is None:
        found.append(f"activation={config.activation.value}")
    qkv, out, mlp = biases(config)
    if variant.read_biases({"attention_bias": qkv, "mlp_bias": mlp}) != (qkv, out, mlp):
        told = {"qkv_bias": qkv, "out_bias": out, "bias": mlp}
        found.append(" with ".join(f"{key}={str(value).lower()}" for key, value in told.items()))
    if config.window is not None and not variant.slides:
        found.append(f"window={config.window}")
    if not variant.free_head_dim and config.head_width * config.num_heads != config.dim:
        found.append(f"head_dim={config.head_dim}")
    return found


def normalise_key(key: str) -> str | None:
    """A key with `model.`, which a bare model leaves out; None for tables of numbers."""
    if key.endswith("rotary_emb.inv_freq"):
        return None
    return f"model.{key}" if key.startswith(("embed_tokens.", "layers.", "norm.")) else key


def architecture(variant: Variant, names: set[str]) -> str:
    """The class that has the projection onto the vocabulary."""
    return f"{variant.name}ForCausalLM"


def finish(architecture: str, tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Nothing is missing."""
    return tensors


LLAMA_FAMILIES: dict[str, Family] = {
    model_type: Family(
        model_type=model_type,
        config=GPTConfig,
        keys=KEYS,
        vocabulary=("backbone.embedding.weight", "head.projection.weight"),
        read_config=partial(read_config, variant),
        write_config=partial(write_config, variant),
        misfits=partial(misfits, variant),
        normalise_key=normalise_key,
        repeated=(("lm_head.weight", "model.embed_tokens.weight"),),
        architecture=partial(architecture, variant),
        finish=finish,
    )
    for model_type, variant in VARIANTS.items()
}
"""By their names in `config.json`."""
