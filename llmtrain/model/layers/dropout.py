"""Dropout (Srivastava et al. 2014)."""

from __future__ import annotations

from torch import Tensor, nn

from llmtrain.model.kernels.dropout import dropout


class Dropout(nn.Module):
    """Like `nn.Dropout`, by way of our kernel.

    Args:
        rate: probability of 0, at least 0 and below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; in evaluation mode nothing happens."""
        return dropout(x, self.rate) if self.training else x

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"rate={self.rate}"
