"""Llama-like models in GGUF files (llama.cpp), read through the `gguf` package: weights, settings, tokenizer.

Numbers are brought back from their quantised form to fp32; what the quantisation lost stays lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtrain.checkpoint.hf.family import Change, Family, KeyTable, Settings
from llmtrain.checkpoint.hf.gguf_tokenizer import read_tokenizer
from llmtrain.checkpoint.hf.llama import LLAMA_FAMILIES
from llmtrain.checkpoint.hf.read import HFModel, assemble
from llmtrain.checkpoint.weights import Stored
from llmtrain.utils.errors import ConfigError, DataError

SUFFIX = ".gguf"

BLOCK = (
    ("attn_norm", "attention_norm"),
    ("attn_q", "attention.query"),
    ("attn_k", "attention.key"),
    ("attn_v", "attention.value"),
    ("attn_output", "attention.out"),
    ("attn_q_norm", "attention.query_norm"),
    ("attn_k_norm", "attention.key_norm"),
    ("ffn_norm", "mlp_norm"),
    ("ffn_gate", "mlp.gate"),
    ("ffn_up", "mlp.up"),
    ("ffn_down", "mlp.down"),
)
"""Modules of one block."""

KEYS = KeyTable(
    (
        ("token_embd", "backbone.embedding"),
        *((f"blk.{{}}.{theirs}", f"backbone.blocks.{{}}.{ours}") for theirs, ours in BLOCK),
        ("output_norm", "backbone.norm"),
        ("output", "head.projection"),
    )
)
"""Every parameter that both sides have."""

NUMBERS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
"""Key there, behind the name of the architecture -> key in `config.json`."""

SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.attn_factor": "attention_factor",
}
"""Likewise, of positions that were scaled."""

REFUSED = ("expert_count", "attention.sliding_window", "rope.scaling.yarn_log_multiplier")
"""Keys that change the model and have no counterpart here; 0 means that they do not."""


def _unrotated(heads: str, tensor: Tensor, settings: Settings) -> Tensor:
    """Rows of queries or keys in the order of halves: llama.cpp rotates neighbours, others rotate halves."""
    pairs = tensor.unflatten(0, (settings[heads], -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def _rotated(heads: str, tensor: Tensor, settings: Settings) -> Tensor:
    pairs = tensor.unflatten(0, (settings[heads], 2, -1))
    return pairs.transpose(1, 2).flatten(0, 2)


def _change(heads: str) -> Change:
    return Change(partial(_unrotated, heads), partial(_rotated, heads))


INTERLEAVED = {
    f"backbone.blocks.{{}}.attention.{name}.{leaf}": _change(heads)
    for name, heads in (("query", "num_attention_heads"), ("key", "num_key_value_heads"))
    for leaf in ("weight", "bias")
}
"""Parameters whose rows stand in another order in files of architecture `llama`."""

GGUF_FAMILIES: dict[str, Family] = {
    name: replace(
        LLAMA_FAMILIES[name],
        keys=KEYS,
        normalise_key=lambda key: key,
        repeated=(("output.weight", "token_embd.weight"),),
        changes=INTERLEAVED if name == "llama" else {},
    )
    for name in ("llama", "qwen2", "qwen3")
}
"""By `general.architecture`."""


def read_gguf(path: Path) -> HFModel:
    """Read settings and tokenizer of a GGUF file, and what weights it has.

    Raises:
        ConfigError: the package is missing; architecture, a setting or the tokenizer has no counterpart here.
        DataError: the file is broken.
    """
    where = str(path)
    reader = open_gguf(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    name = values.get("general.architecture")
    if name not in GGUF_FAMILIES:
        raise ConfigError(
            f"GGUF files of architecture {name} cannot be read",
            where,
            f"known architectures: {', '.join(GGUF_FAMILIES)}",
        )
    family = GGUF_FAMILIES[name]
    weights = {tensor.name: stored(tensor, where) for tensor in reader.tensors}
    theirs = settings_of(name, values, weights, where)
    if (factors := weights.pop("rope_freqs.weight", None)) is not None and not factors.read().eq(1).all():
        raise ConfigError(
            "the file scales rotary positions by a table of its own", where, "convert the original model"
        )
    config = family.read_config(theirs, where)
    model = assemble(family, config, theirs, weights, read_tokenizer(values, where), where)
    model.licence = values.get("general.license")
    return model


def open_gguf(path: Path) -> Any:
    """The reader of a file.

    Raises:
        ConfigError: the package is missing.
        DataError: the file is missing or broken.
    """
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "GGUF files need the package gguf", str(path), "install it: pip install 'llmtrain[gguf]'"
        ) from None
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise DataError(f"the GGUF file cannot be read: {error}", str(path), "get the file again") from error


def stored(tensor: Any, where: str) -> Stored:
    """A tensor of a file; its numbers are brought back to fp32 when they are asked for."""
    return Stored(
        torch.Size(int(size) for size in reversed(tensor.shape)), partial(dequantised, tensor, where)
    )


def dequantised(tensor: Any, where: str) -> Tensor:
    """The numbers of a tensor in fp32.

    Raises:
        DataError: they are stored in a form that the package cannot read.
    """
    import gguf

    try:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        raise DataError(
            f"{tensor.name} cannot be brought back from {tensor.tensor_type.name}: {error}",
            where,
            "take another quantisation of the model",
        ) from error
    return torch.from_numpy(np.array(values, dtype=np.float32))


def settings_of(
    name: str, values: Mapping[str, Any], weights: Mapping[str, Stored], where: str
) -> dict[str, Any]:
    """What a `config.json` of the model would say.

    Raises:
        ConfigError: a setting has no counterpart.
        DataError: a setting is missing.
    """
    told = {
        key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")
    }
    for key in REFUSED:
        if told.get(key):
            raise ConfigError(
                f"models with {key}={told[key]} are not known here", where, "take another model"
            )
    theirs = {new: number(told[key]) for key, new in NUMBERS.items() if key in told}
    needed = [key for key, new in NUMBERS.items() if new not in theirs and key in NEEDED]
    if needed or "token_embd.weight" not in weights:
        missing = ", ".join(f"{name}.{key}" for key in needed) or "token_embd.weight"
        raise DataError(f"the file does not tell {missing}", where, "get the file again")
    heads = theirs["num_attention_heads"]
    width = theirs.setdefault("head_dim", theirs["hidden_size"] // heads)
    if told.get("rope.dimension_count", width) != width:
        raise ConfigError("only a part of each head is rotated", where, "take another model")
    scaling = {new: number(told[key]) for key, new in SCALING.items() if key in told}
    if scaling.get("rope_type", "none") != "none":
        theirs["rope_scaling"] = scaling
    return theirs | {
        "num_key_value_heads": theirs.get("num_key_value_heads", heads),
        "vocab_size": weights["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in weights,
        "attention_bias": "blk.0.attn_q.bias" in weights,
    }


NEEDED = (
    "embedding_length",
    "feed_forward_length",
    "block_count",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "context_length",
)
"""Keys that every file has."""


def number(value: Any) -> Any:
    """A value; of a number of 32 bits the one with fewest digits that it stands for (1e-05)."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
