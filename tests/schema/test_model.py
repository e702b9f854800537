"""What a model may look like."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain.schema.load import build
from llmtrain.schema.model import BERTConfig, GPTConfig, RotaryScaling, Scaling
from llmtrain.schema.registry import Registry
from llmtrain.utils.errors import ConfigError


def test_heads_are_as_wide_as_they_are_said_to_be():
    assert GPTConfig(num_heads=4, dim=48).head_width == 12
    assert GPTConfig(num_heads=5, dim=48, head_dim=16).head_width == 16
    assert BERTConfig(num_heads=5, dim=48, head_dim=16).head_width == 16


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_heads": 5, "dim": 48}, "dim must be a multiple of num_heads"),
        ({"head_dim": 0}, "head_dim must be greater than 0"),
        ({"position": "rotary", "head_dim": 15}, "position rotary needs an even head width"),
        ({"rotary_scaling": {"factor": 0.5}}, "rotary_scaling.factor must be at least 1"),
        ({"rotary_scaling": {"original_positions": 0}}, "original_positions must be greater than 0"),
        ({"rotary_scaling": {"low_frequency": 4}}, "low_frequency must be below high_frequency"),
        ({"rotary_scaling": {"beta_slow": 40}}, "beta_slow must be below beta_fast"),
        ({"rotary_scaling": {"attention_factor": 0}}, "attention_factor must be greater than 0"),
        ({"rotary_scaling": {"method": "dynamic"}}, "rotary_scaling.method must be one of none, linear"),
        ({"rotary_scaling": {"factors": 2}}, "unknown key 'rotary_scaling.factors'"),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError) as error:
        build(GPTConfig, settings, Registry())
    assert told in str(error.value)


def test_nested_settings_are_built():
    config = build(GPTConfig, {"rotary_scaling": {"method": "yarn", "factor": 4}}, Registry())
    assert config.rotary_scaling == RotaryScaling(Scaling.yarn, 4.0)
