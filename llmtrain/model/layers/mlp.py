"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.model.kernels.gelu import GELU
from llmtrain.model.layers.attention import fused_linear
from llmtrain.schema.model import Activation

GATES: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.swiglu: F.silu,
    Activation.geglu: F.gelu,
}
"""Activations that have a gate, and what is done to it."""


class SquaredReLU(nn.Module):
    """max(x, 0) squared (So et al. 2021, "Primer"): as good as a gate, without the weights of one."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.relu(x).square()


class FeedForward(nn.Module):
    """Up, activation, down.

    Args:
        dim: D.
        hidden_dim: F.
        activation: gelu (exact), gelu_tanh (GPT-2's approximation) or relu_squared.
        bias: whether the projections have biases.
    """

    def __init__(self, dim: int, hidden_dim: int, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.activation = build_activation(activation)
        self.down = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down(self.activation(self.up(x_BTD)))


class GatedFeedForward(nn.Module):
    """SwiGLU and GEGLU (Shazeer 2020): activation(gate) * up, then down.

    Args:
        dim: D.
        hidden_dim: F.
        activation: swiglu (SiLU) or geglu (exact GELU).
        bias: whether the projections have biases.
    """

    def __init__(self, dim: int, hidden_dim: int, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=bias)
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.activation = GATES[activation]
        self.down = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        gate_BTF, up_BTF = fused_linear(x_BTD, self.gate, self.up)
        return self.down(self.activation(gate_BTF) * up_BTF)


def build_activation(activation: Activation) -> nn.Module:
    """The activation of layers without a gate: squared ReLU where it is named, and else the GELU (Hendrycks &
    Gimpel 2016), exact unless it is named as approximated by tanh."""
    if activation is Activation.relu_squared:
        return SquaredReLU()
    return GELU(tanh=activation is Activation.gelu_tanh)


def build_mlp(dim: int, hidden_dim: int | None, activation: Activation, bias: bool) -> nn.Module:
    """The feed-forward layer for an activation; `hidden_dim` None takes the usual width."""
    if activation in GATES:
        # Two thirds of 4 x D keep the parameter count of a plain layer (Shazeer 2020).
        return GatedFeedForward(dim, hidden_dim or -(-(8 * dim // 3) // 64) * 64, activation, bias)
    return FeedForward(dim, hidden_dim or 4 * dim, activation, bias)
