"""A linear layer with a low-rank change that learns while its own weights do not (Hu et al. 2021, "LoRA")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.model.kernels.dropout import dropout

LEAVES = ("lora_A", "lora_B")
"""Names of the parameters that an adapter adds to a layer."""

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Input, A, B -> change of the output."""


class LoRALinear(nn.Linear):
    """W x + b + scale * B A dropout(x). The names of weight and bias are those of a plain layer.

    Args:
        in_features: I.
        out_features: O.
        bias: whether there is one.
        rank: R.
        scale: of the change.
        rate: of dropout on the input of A.

    Attributes:
        lora_A: (R, I).
        lora_B: (O, R).
        spread: carries out the product of the own shares, where several processes have parts of A or B; set
            by `parallel.tensor`.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, rank: int, scale: float, rate: float
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.scale, self.rate = scale, rate
        self.lora_A = nn.Parameter(torch.empty(rank, in_features))
        self.lora_B = nn.Parameter(torch.empty(out_features, rank))
        self.spread: Callable[[Product, Any, Any, Any], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return super().forward(x) + self.change(x)

    def change(self, x: Tensor) -> Tensor:
        """What the adapter adds to the output for an input, (..., O)."""
        if self.spread is None:
            return self._product(x, self.lora_A, self.lora_B)
        return self.spread(self._product, x, self.lora_A, self.lora_B)

    def _product(self, x: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
        if self.training:
            x = dropout(x, self.rate)
        # The scale is applied where there are fewest numbers.
        return F.linear(F.linear(x, a_RI) * self.scale, b_OR)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition(".")[2] in LEAVES
