"""Rotary position embedding (Su et al. 2021, "RoFormer"), in the half-split form of Llama."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmtrain.schema.model import RotaryScaling, Scaling

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (B or 1, 1, T, K), that rotate queries and keys."""


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, scaling: RotaryScaling | None = None
) -> Rotation:
    """Cosines and sines of every position.

    They are computed in fp32 in each forward pass and not stored: the table is small, and a module
    without buffers can be built on the meta device and sharded without special care.

    Args:
        positions: (B or 1, T) integers.
        head_dim: K, even.
        theta: base of the frequencies.
        scaling: what is done to the frequencies. Default: nothing.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies, factor = theta**-exponent, 1.0
    if scaling is not None:
        frequencies, factor = scaled(frequencies, theta, scaling), attention_factor(scaling)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return (angles.cos(), angles.sin()) if factor == 1 else (angles.cos() * factor, angles.sin() * factor)


def scaled(frequencies: Tensor, theta: float, scaling: RotaryScaling) -> Tensor:
    """Frequencies for longer rows: divided, kept, or a mixture of both; (K/2,).

    llama3 mixes by how often a frequency turns in the original rows, yarn by the place of the frequency
    (Peng et al. 2023, "YaRN", section 3.2, with whole places as borders).
    """
    if scaling.method is Scaling.none:
        return frequencies
    divided = frequencies / scaling.factor
    if scaling.method is Scaling.linear:
        return divided
    if scaling.method is Scaling.llama3:
        turns = scaling.original_positions * frequencies / (2 * math.pi)
        low, high = scaling.low_frequency, scaling.high_frequency
        kept = ((turns - low) / (high - low)).clamp(0, 1)
    else:
        width = 2 * len(frequencies)

        def place(turns: float) -> float:
            length = scaling.original_positions / (2 * math.pi * turns)
            return width * math.log(length) / (2 * math.log(theta))

        first = max(math.floor(place(scaling.beta_fast)), 0)
        last = min(math.ceil(place(scaling.beta_slow)), width - 1)
        places = torch.arange(len(frequencies), device=frequencies.device, dtype=torch.float32)
        kept = 1 - ((places - first) / max(last - first, 1e-3)).clamp(0, 1)
    return divided * (1 - kept) + frequencies * kept


def attention_factor(scaling: RotaryScaling) -> float:
    """What queries and keys are multiplied with (Peng et al. 2023, equation 22)."""
    if scaling.method is not Scaling.yarn:
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair (i, i + K/2) of the last dimension by the angle of its position."""
    cos, sin = (table.to(x_BHTK.dtype) for table in rotation)
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos + torch.cat([-second, first], dim=-1) * sin
