"""Normalisation layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.schema.model import Norm


class LayerNorm(nn.LayerNorm):
    """LayerNorm (Ba et al. 2016) whose weights may have fewer bits than its input.

    Where weights are sharded and training is in bf16 they arrive as bf16, while the stream is fp32; PyTorch's
    kernel for CPUs refuses that.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends with D -> the same shape."""
        weight, bias = (
            None if one is None else one.to(torch.promote_types(one.dtype, x.dtype))
            for one in (self.weight, self.bias)
        )
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


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
    return LayerNorm(dim, eps=eps, bias=bias)
