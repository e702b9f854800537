"""Feed-forward layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.model.layers.attention import fused_linear
from llmtrain.schema.groups import Activation


class FeedForward(nn.Module):
    """Up, activation, down.

    Args:
        dim: D.
        hidden_dim: F.
        activation: gelu (exact) or gelu_tanh (GPT-2's approximation).
        bias: whether the projections have biases.
    """

    def __init__(self, dim: int, hidden_dim: int, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.activation = nn.GELU(approximate="tanh" if activation is Activation.gelu_tanh else "none")
        self.down = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down(self.activation(self.up(x_BTD)))


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): SiLU(gate) * up, then down."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=bias)
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.down = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        gate_BTF, up_BTF = fused_linear(x_BTD, self.gate, self.up)
        return self.down(F.silu(gate_BTF) * up_BTF)


def build_mlp(dim: int, hidden_dim: int | None, activation: Activation, bias: bool) -> nn.Module:
    """The feed-forward layer for an activation; `hidden_dim` None takes the usual width."""
    if activation is Activation.swiglu:
        # Two thirds of 4 x D keep the parameter count of a plain layer (Shazeer 2020).
        return GatedFeedForward(dim, hidden_dim or -(-(8 * dim // 3) // 64) * 64, bias)
    return FeedForward(dim, hidden_dim or 4 * dim, activation, bias)
