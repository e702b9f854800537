"""Rotary position embedding (Su et al. 2021, "RoFormer"), in the half-split form of Llama."""

from __future__ import annotations

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (B or 1, 1, T, K), that rotate queries and keys."""


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> Rotation:
    """Cosines and sines of every position.

    They are computed in fp32 in each forward pass and not stored: the table is small, and a module
    without buffers can be built on the meta device and sharded without special care.

    Args:
        positions: (B or 1, T) integers.
        head_dim: K, even.
        theta: base of the frequencies.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() * theta**-exponent
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair (i, i + K/2) of the last dimension by the angle of its position."""
    cos, sin = (table.to(x_BHTK.dtype) for table in rotation)
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos + torch.cat([-second, first], dim=-1) * sin
