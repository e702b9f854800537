"""Normalisation layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.schema.model import Norm


class LayerNorm(nn.LayerNorm):
    """LayerNorm (Ba et al. 2016) whose weights may have fewer bits than its input; see `raised`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends with D -> the same shape."""
        return F.layer_norm(x, self.normalized_shape, raised(self.weight, x), raised(self.bias, x), self.eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang & Sennrich 2019) whose weight may have fewer bits than its input; see `raised`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends with D -> the same shape; worked out in the format of more bits."""
        weight = raised(self.weight, x)
        assert weight is not None
        return F.rms_norm(x.to(weight.dtype), self.normalized_shape, weight, self.eps).to(x.dtype)


def raised(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """A parameter in a format of at least as many bits as an input has.

    Where weights are sharded and training is in bf16 they arrive as bf16, while the stream is fp32; PyTorch's
    kernels refuse that, or are slow.
    """
    return None if parameter is None else parameter.to(torch.promote_types(parameter.dtype, x.dtype))


def build_norm(kind: Norm, dim: int, eps: float, bias: bool) -> nn.Module:
    """A norm over the last dimension.

    Args:
        kind: LayerNorm or RMSNorm (which never has a bias).
        dim: size D of the last dimension.
        eps: added to the variance.
        bias: whether LayerNorm has a bias.
    """
    if kind is Norm.rmsnorm:
        return RMSNorm(dim, eps=eps)
    return LayerNorm(dim, eps=eps, bias=bias)
