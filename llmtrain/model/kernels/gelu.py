"""GELU for compiled blocks on CPUs.

Reason: what inductor makes of GELU is slower than what it stands for. Forward and backward of 12.6 million
numbers in bf16 take 41 ms of one core in the exact form where PyTorch's own loops take 20; the form with tanh
takes 30 ms of two cores where the same function written with an exponential takes 14. So for a compiler the
exact form is an operator that stays as it is, and tanh becomes a sigmoid: 1 + tanh(u) = 2 sigmoid(2 u).

The eager reference is `torch.nn.functional.gelu`; the switch is `LLMTRAIN_KERNELS=0`.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = math.sqrt(2 / math.pi)


class GELU(nn.Module):
    """Gaussian error linear unit (Hendrycks & Gimpel 2016), x P(X <= x) for a standard normal X.

    Args:
        tanh: the approximation of GPT-2, x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.
    """

    def __init__(self, tanh: bool = False) -> None:
        super().__init__()
        self.tanh = tanh

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        ours = torch.compiler.is_compiling() and x.device.type == "cpu"
        if not ours or os.environ.get("LLMTRAIN_KERNELS") == "0":
            return F.gelu(x, approximate="tanh" if self.tanh else "none")
        result: Tensor = gelu_by_sigmoid(x) if self.tanh else exact_gelu(x)
        return result


def gelu_by_sigmoid(x: Tensor) -> Tensor:
    """GPT-2's approximation without a tanh; worked out in fp32."""
    number = x.to(torch.promote_types(x.dtype, torch.float32))
    return (number * torch.sigmoid(number * (2 * ROOT + 2 * ROOT * 0.044715 * number * number))).to(x.dtype)


@torch.library.custom_op("llmtrain::gelu", mutates_args=())
def exact_gelu(x: Tensor) -> Tensor:
    """PyTorch's loop over the numbers, which compilers leave alone."""
    return F.gelu(x)


@torch.library.custom_op("llmtrain::gelu_backward", mutates_args=())
def exact_gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Of `exact_gelu`."""
    result: Tensor = torch.ops.aten.gelu_backward(grad, x)
    return result


@exact_gelu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@exact_gelu_backward.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    result: Tensor = exact_gelu_backward(grad, *ctx.saved_tensors)
    return result


exact_gelu.register_autograd(_backward, setup_context=_save)
