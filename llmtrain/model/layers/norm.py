"""Normalisation layers."""

from __future__ import annotations

from torch import nn

from llmtrain.schema.model import Norm


def build_norm(kind: Norm, dim: int, eps: float, bias: bool) -> nn.Module:
    """A norm over the last dimension.

    Args:
        kind: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019; never has a bias).
        dim: size D of the last dimension.
        eps: added to the variance.
        bias: whether LayerNorm has a bias.
    """
    if kind is Norm.rmsnorm:
        return nn.RMSNorm(dim, eps=eps)
    return nn.LayerNorm(dim, eps=eps, bias=bias)
