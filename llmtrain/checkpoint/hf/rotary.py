"""Rotary positions in `config.json`: `rope_theta` and `rope_scaling`, or `rope_parameters` with both."""

from __future__ import annotations

from typing import Any

from llmtrain.checkpoint.hf.family import Settings
from llmtrain.schema.model import Scaling, TransformerConfig
from llmtrain.utils.errors import ConfigError

KEYS: dict[Scaling, dict[str, str]] = {
    Scaling.none: {},
    Scaling.linear: {"factor": "factor"},
    Scaling.llama3: {
        "factor": "factor",
        "original_max_position_embeddings": "original_positions",
        "low_freq_factor": "low_frequency",
        "high_freq_factor": "high_frequency",
    },
    Scaling.yarn: {
        "factor": "factor",
        "original_max_position_embeddings": "original_positions",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    },
}
"""Key there -> key here, of each kind."""

KINDS = {"default": Scaling.none, "linear": Scaling.linear, "llama3": Scaling.llama3, "yarn": Scaling.yarn}
"""`rope_type` there -> kind here."""

PLAIN: dict[str, Any] = {
    "partial_rotary_factor": 1.0,
    "truncate": True,
    "mscale": None,
    "mscale_all_dim": None,
}
"""Settings that we know one value of, which is the default too."""


def read_rotary(theirs: Settings, family: str, where: str) -> dict[str, Any]:
    """Our `rotary_theta` and `rotary_scaling`, as plain data.

    Raises:
        ConfigError: positions are scaled in a way that has no counterpart here.
    """
    told = {
        **{key: theirs[key] for key in ("rope_theta", "partial_rotary_factor") if key in theirs},
        **(theirs.get("rope_parameters") or {}),
        **(theirs.get("rope_scaling") or {}),
    }
    name = told.get("rope_type", told.get("type", "default"))
    if name not in KINDS:
        raise ConfigError(
            f"{family} with rotary positions of rope_type={name} is not known here",
            where,
            f"known are {', '.join(KINDS)}; others change with the length of a row, or by layer",
        )
    for key, value in PLAIN.items():
        if told.get(key, value) != value:
            raise ConfigError(
                f"{family} with rotary positions of {key}={told[key]} is not known here",
                where,
                f"only {key}={value} can be read",
            )
    kind = KINDS[name]
    told = {"original_max_position_embeddings": theirs.get("max_position_embeddings", 2048), **told}
    values = {ours: told[key] for key, ours in KEYS[kind].items() if told.get(key) is not None}
    return {
        "rotary_theta": told.get("rope_theta", 10000.0),
        "rotary_scaling": {"method": kind.value, **values},
    }


def write_rotary(config: TransformerConfig) -> dict[str, Any]:
    """What `config.json` says about positions, in the form that all versions of transformers read."""
    scaling = config.rotary_scaling
    if scaling.method is Scaling.none:
        return {"rope_theta": config.rotary_theta, "rope_scaling": None}
    values = {key: getattr(scaling, ours) for key, ours in KEYS[scaling.method].items()}
    name = next(name for name, kind in KINDS.items() if kind is scaling.method)
    values = {"rope_type": name, **{key: value for key, value in values.items() if value is not None}}
    return {"rope_theta": config.rotary_theta, "rope_scaling": values}
